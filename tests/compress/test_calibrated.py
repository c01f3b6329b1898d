"""Calibration, plan, rounding and the files, on a real small engine: budgets are kept and every choice is followed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from freehold.compress import ANY, CompressOptions, compress, export_gguf, plan_text
from freehold.compress.planfile import parse_scheme
from freehold.compress.statistics import Statistics
from freehold.engine.calibrate import calibrate
from freehold.engine.evaluate import evaluate
from freehold.errors import UsageError
from freehold.formats import QuantizedTensor, open_checkpoint
from freehold.formats.digest import digest
from freehold.settings import EngineSettings
from tests.compress.checkpoints import tiny_tensors, write_checkpoint
from tests.engine import tiny

IDS = np.random.default_rng(0).integers(0, 96, 1024).tolist()
WIDER = {"hidden_size": 64, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = {name: (w * 3).astype(np.float32) if w.ndim == 2 else w for name, w in tiny_tensors().items()}
    return write_checkpoint(tmp_path_factory.mktemp("model") / "source", tensors, **WIDER)


@pytest.fixture(scope="module")
def statistics(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("statistics") / "out"
    calibrate(source, IDS, out, source=digest(source), text="t")
    return out


@pytest.mark.parametrize("bits", [5.5, 6.0, 8.0])
def test_a_budget_is_for_the_whole_model_and_is_kept(
    source: Path, statistics: Path, tmp_path: Path, bits: float
) -> None:
    # A model this small is mostly headers and norms: the budget has to cover them too.
    headroom = 8 * HEADERS / PARAMETERS
    options = CompressOptions(budget=bits + headroom, embedding_bits=ANY)
    report = compress(source, tmp_path / "out", options, statistics=statistics)
    assert report.bits_per_weight <= bits + headroom
    assert report.bits_per_weight > bits - 1.5
    assert report.predicted_kld is not None


def test_tensors_of_one_input_are_rounded_by_moments_of_their_own(source: Path, statistics: Path) -> None:
    seen = Statistics(statistics, digest(source))
    group = next(group for group in seen.groups if len(group.tensors) == 3)
    moments = [seen.curvature(tensor).matrix for tensor in group.tensors]
    assert not np.allclose(moments[0], moments[2], rtol=0.01)
    assert not np.allclose(moments[0], moments[1], rtol=0.01)


HEADERS = 40_000
PARAMETERS = sum(w.size for w in tiny_tensors().values())


def test_more_bits_never_predict_a_worse_model(source: Path, statistics: Path, tmp_path: Path) -> None:
    headroom = 8 * HEADERS / PARAMETERS
    costs = []
    for number, bits in enumerate((5.0, 5.5, 6.5, 8.0)):
        options = CompressOptions(budget=min(bits + headroom, 16), embedding_bits=ANY)
        report = compress(source, tmp_path / str(number), options, statistics=statistics)
        costs.append(report.predicted_kld)
    assert costs == sorted(costs, reverse=True)


def test_rounding_that_makes_up_for_itself_beats_rounding_to_nearest(
    source: Path, statistics: Path, tmp_path: Path
) -> None:
    uniform = CompressOptions(uniform="int4 g32", embedding_bits=8)
    compress(source, tmp_path / "gptq", uniform, statistics=statistics)
    compress(source, tmp_path / "nearest", CompressOptions(kv_bits=4))
    settings = EngineSettings(isa="reference", kv_dtype="f32")
    ids = np.random.default_rng(9).integers(0, 96, 512).tolist()
    gptq, nearest = (
        evaluate(source, tmp_path / name, ids, window=256, settings=settings).kld_mean for name in ("gptq", "nearest")
    )
    assert gptq < nearest


def test_one_choice_for_each_fused_group(source: Path, statistics: Path) -> None:
    text = plan_text(source, CompressOptions(budget=12.0, embedding_bits=ANY, fused=True), statistics=statistics)
    chosen = formats(text)
    for layer in range(2):
        base = f"model.layers.{layer}."
        assert len({chosen[f"{base}self_attn.{part}_proj.weight"] for part in "qkv"}) == 1
        assert len({chosen[f"{base}mlp.{part}_proj.weight"] for part in ("gate", "up")}) == 1
    assert "# layers.0.qkv: predicted to cost" in text


def formats(plan: str) -> dict[str, str]:
    found = tomllib.loads(plan)["tensors"]
    assert isinstance(found, dict)
    return found


def predicted(plan: str) -> float:
    return float(plan.split("predicted to cost ")[1].split()[0])


def test_tensors_of_one_input_may_differ_in_bits_but_share_their_activations_groups(
    source: Path, statistics: Path
) -> None:
    found = []
    for bits in np.arange(4.5, 6.5, 0.25) + 8 * HEADERS / PARAMETERS:
        texts = [
            plan_text(source, CompressOptions(budget=bits, embedding_bits=ANY, fused=fused), statistics=statistics)
            for fused in (False, True)
        ]
        assert predicted(texts[0]) <= predicted(texts[1])
        chosen = formats(texts[0])
        for layer in range(2):
            qkv = [chosen[f"model.layers.{layer}.self_attn.{part}_proj.weight"] for part in "qkv"]
            units = {64 if "per row" in text else int(text.split("g")[1].split()[0]) for text in qkv if text != "bf16"}
            assert len(units) <= 1
            found.append(len(set(qkv)))
    assert max(found) > 1


def test_only_the_widths_allowed_are_planned(source: Path, statistics: Path) -> None:
    for widths, bits in (((4, 8), 12.0), ((5,), 13.0), ((3, 6), 12.0)):
        options = CompressOptions(budget=bits, embedding_bits=ANY, widths=widths)
        texts = formats(plan_text(source, options, statistics=statistics)).values()
        assert {text[3] for text in texts if text != "bf16"} <= set(map(str, widths))


def test_widths_that_no_format_has_are_refused() -> None:
    for widths in ((2,), (4, 7), ()):
        with pytest.raises(UsageError, match="widths"):
            CompressOptions(budget=6.0, widths=widths)


def test_a_plan_can_be_edited_and_replayed(source: Path, statistics: Path, tmp_path: Path) -> None:
    text = plan_text(source, CompressOptions(uniform="int4 g32", embedding_bits=8), statistics=statistics)
    name = "model.layers.1.mlp.down_proj.weight"
    assert f'"{name}" = "int4 g32"' in text
    plan = tmp_path / "plan.toml"
    plan.write_text(text.replace(f'"{name}" = "int4 g32"', f'"{name}" = "int8 per row"'))
    compress(source, tmp_path / "out", statistics=statistics, plan=plan)
    with open_checkpoint(tmp_path / "out") as result:
        edited, other = result.load(name), result.load(name.replace("layers.1", "layers.0"))
    assert isinstance(edited, QuantizedTensor)
    assert isinstance(other, QuantizedTensor)
    assert (edited.bits, edited.group_size) == (8, 160)
    assert (other.bits, other.group_size) == (4, 32)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('"model.layers.9.mlp.up_proj.weight" = "int4 g32"', "has not"),
        ('"model.norm.weight" = "int4 g32"', "which is kept"),
        ('"model.layers.0.mlp.down_proj.weight" = "int4 g64"', "its width is 160"),
    ],
)
def test_a_plan_that_can_not_be_followed_is_refused(source: Path, tmp_path: Path, line: str, problem: str) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(f"[tensors]\n{line}\n")
    with pytest.raises(UsageError, match=problem):
        compress(source, tmp_path / "out", plan=plan)
    assert not (tmp_path / "out").exists()


def test_a_budget_without_statistics_or_with_those_of_another_model_is_refused(
    source: Path, statistics: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="measured cost"):
        compress(source, tmp_path / "out", CompressOptions(budget=8))
    other = write_checkpoint(tmp_path / "other", tiny_tensors(seed=2), **WIDER)
    with pytest.raises(UsageError, match="another model"):
        compress(other, tmp_path / "out", CompressOptions(budget=8), statistics=statistics)


@pytest.mark.parametrize("bits", [3, 5, 6])
def test_widths_between_are_stored_packed_read_back_and_run(
    source: Path, statistics: Path, tmp_path: Path, bits: int
) -> None:
    options = CompressOptions(uniform=f"int{bits} g32", embedding_bits=ANY)
    report = compress(source, tmp_path / "out", options, statistics=statistics)
    assert any(f"layers of {bits} bits" in warning for warning in report.warnings)
    name = "model.layers.0.mlp.up_proj.weight"
    with open_checkpoint(source) as before, open_checkpoint(tmp_path / "out") as after:
        loaded, original, info = after.load(name), before.float32(name), after.info(name)
        assert isinstance(loaded, QuantizedTensor)
        assert (loaded.bits, info.dtype) == (bits, f"int{bits}")
        assert info.nbytes == original.size * bits // 8 + original.size // 32 * 2 + 16
        relative = np.linalg.norm(loaded.float32() - original) / np.linalg.norm(original)
        assert 0.7 / 2**bits < relative < 2.2 / 2**bits
    ids = np.random.default_rng(9).integers(0, 96, 256).tolist()
    tiers = [
        evaluate(source, tmp_path / "out", ids, window=128, settings=EngineSettings(isa=isa, kv_dtype="f32")).kld_mean
        for isa in ("reference", "portable")
    ]
    assert tiers[0] == pytest.approx(tiers[1], rel=1e-3, abs=1e-4)
    assert tiers[0] < {3: 0.5, 5: 0.05, 6: 0.02}[bits]


def test_a_shared_embedding_in_4_bits_is_said_to_be_beyond_transformers(
    source: Path, statistics: Path, tmp_path: Path
) -> None:
    report = compress(
        source, tmp_path / "out", CompressOptions(uniform="int4 g32", embedding_bits=4), statistics=statistics
    )
    assert any("transformers can't load" in warning for warning in report.warnings)
    with open_checkpoint(tmp_path / "out") as result:
        assert result.info("model.embed_tokens.weight").dtype == "int4"
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert any("model.embed_tokens" in group["targets"] for group in config["config_groups"].values())


KILLED = """
import os, signal, sys
from pathlib import Path
from freehold.compress import CompressOptions, compress

left = int(sys.argv[4])

def progress(done, total, what):
    global left
    if what in ("measuring", "compressing"):
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

compress(Path(sys.argv[1]), Path(sys.argv[2]), CompressOptions(budget=14.0), progress, statistics=Path(sys.argv[3]))
"""


@pytest.mark.parametrize("after", [0, 3, 8, 12, 20])
def test_a_calibrated_run_that_is_killed_goes_on_and_ends_with_the_same_bytes(
    source: Path, statistics: Path, tmp_path: Path, after: int
) -> None:
    def copied(name: str) -> Path:
        made = tmp_path / name
        made.mkdir()
        for path in statistics.iterdir():
            if not path.name.startswith("costs"):
                (made / path.name).write_bytes(path.read_bytes())
        return made

    options = CompressOptions(budget=14.0)
    compress(source, tmp_path / "whole", options, statistics=copied("a"))
    other = copied("b")
    command = [sys.executable, "-c", KILLED, source, tmp_path / "out", other, str(after)]
    killed = subprocess.run(list(map(str, command)), env=os.environ | {"OPENBLAS_NUM_THREADS": "2"})
    assert killed.returncode == -signal.SIGKILL
    compress(source, tmp_path / "out", options, statistics=other)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_page_is_whole_in_itself_and_shows_every_matrix(source: Path, statistics: Path, tmp_path: Path) -> None:
    compress(source, tmp_path / "out", CompressOptions(budget=14.0), statistics=statistics)
    text = (tmp_path / "out" / "report.html").read_text()
    assert "http" not in text
    assert "<script" not in text
    for heading in ("Bits", "Error by layer", "Quality against size", "Kept in higher precision"):
        assert f"<h2>{heading}</h2>" in text
    assert "model.layers.1.mlp.down_proj.weight" in text


def test_a_gguf_file_holds_the_very_weights(statistics: Path, tmp_path: Path) -> None:
    model = tiny.write(tmp_path / "model", vocab_size=96)
    (model / "tokenizer.json").write_text(json.dumps(BYTES))
    stats = tmp_path / "stats"
    calibrate(model, IDS, stats, source=digest(model), text="t")
    options = CompressOptions(uniform="int4 g32", embedding_bits=4)
    compress(model, tmp_path / "out", options, statistics=stats)
    export = export_gguf(tmp_path / "out", tmp_path / "out", tmp_path / "out.gguf")
    assert export.types["Q4_0"] == 15
    with open_checkpoint(tmp_path / "out") as ours, open_checkpoint(tmp_path / "out.gguf") as theirs:
        assert set(theirs.names()) == set(ours.names())
        for name in ours.names():
            expected = ours.float32(name)
            assert np.allclose(theirs.float32(name), expected, rtol=2e-3 if export.rounded_scales else 0, atol=1e-7), (
                name
            )
        for key in ("hidden_size", "num_key_value_heads", "intermediate_size", "rope_theta", "tie_word_embeddings"):
            assert theirs.config[key] == ours.config[key]


BYTES = {
    "version": "1.0",
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {chr(33 + i): i for i in range(90)}, "merges": []},
    "added_tokens": [],
}


def test_schemes_of_the_report_are_those_of_the_file(source: Path, statistics: Path, tmp_path: Path) -> None:
    report = compress(source, tmp_path / "out", CompressOptions(budget=14.0), statistics=statistics)
    with open_checkpoint(tmp_path / "out") as result:
        for tensor in report.tensors:
            if tensor.stored.startswith("int"):
                scheme, loaded = parse_scheme(tensor.stored), result.load(tensor.name)
                assert scheme is not None
                assert isinstance(loaded, QuantizedTensor)
                assert loaded.bits == scheme.bits
                assert loaded.group_size == (scheme.group_size or tensor.shape[1])
