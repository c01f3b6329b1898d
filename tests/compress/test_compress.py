"""A whole compression, read back by the reader of `formats`."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.compress import CompressOptions, compress
from freehold.compress.quantize import quantize
from freehold.compress.write import Destination
from freehold.errors import FormatError, UnsupportedError, UsageError
from freehold.formats import QuantizedTensor, open_checkpoint
from tests.compress.checkpoints import CONFIG, tiny_tensors, write_checkpoint, write_safetensors


def weights_digest(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_the_reader_gives_back_what_the_search_found(tmp_path: Path, bits: int, symmetric: bool, tied: bool) -> None:
    tensors = tiny_tensors(tied=tied)
    source = write_checkpoint(tmp_path / "source", tensors, tie_word_embeddings=tied)
    compress(source, tmp_path / "out", CompressOptions(bits=bits, symmetric=symmetric))
    with open_checkpoint(tmp_path / "out") as result:
        for name, weights in tensors.items():
            loaded = result.load(name)
            if weights.ndim == 1:
                assert np.array_equal(loaded, weights)
                continue
            wide = "embed" in name or "lm_head" in name
            group = 64 if wide else 32
            width = 8 if wide or "k_proj" in name or "v_proj" in name else bits
            expected = quantize(weights, width, group, symmetric=wide or symmetric)
            assert isinstance(loaded, QuantizedTensor)
            assert (loaded.bits, loaded.group_size) == (width, group)
            assert np.array_equal(loaded.codes, expected.codes)
            assert np.array_equal(loaded.scales, expected.scales)
            difference = result.float32(name).astype(np.float64) - weights
            assert (difference**2).sum() == pytest.approx(expected.squared_error, rel=1e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_source_on_the_very_grid_is_not_rounded_again(tmp_path: Path, bits: int) -> None:
    source = write_checkpoint(tmp_path / "source")
    compress(source, tmp_path / "once", CompressOptions(bits=bits))
    report = compress(tmp_path / "once", tmp_path / "twice", CompressOptions(bits=bits))
    assert report.error_max == 0
    with open_checkpoint(tmp_path / "once") as once, open_checkpoint(tmp_path / "twice") as twice:
        for name in once.names():
            first, second = once.load(name), twice.load(name)
            if isinstance(first, QuantizedTensor) and isinstance(second, QuantizedTensor):
                assert np.array_equal(first.codes, second.codes)
                assert np.array_equal(first.scales, second.scales)
            else:
                assert np.array_equal(first, second)


def test_the_same_source_gives_the_same_bytes_on_every_machine(tmp_path: Path) -> None:
    # Integers over a power of two: the source does not depend on a random generator's version.
    tensors = {
        name: ((np.arange(w.size, dtype=np.int64) * 7919 % 2003 - 1001) / 4096).astype(np.float32).reshape(w.shape)
        for name, w in tiny_tensors(layers=1).items()
    }
    source = write_checkpoint(tmp_path / "source", tensors)
    for threads in (1, 3):
        compress(source, tmp_path / f"out{threads}", CompressOptions(threads=threads))
    assert weights_digest(tmp_path / "out1") == weights_digest(tmp_path / "out3") == GOLDEN


# Changes only with compress.run.ALGORITHM (or the layout of the result).
GOLDEN = "5a14632da1392c7e70d1ec378deeb7df22ac3d9e08262d50987f6a7a734bee97"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_sources_keep_their_norms_exactly(tmp_path: Path, dtype: str) -> None:
    tensors: dict[str, np.ndarray[Any, Any]] = tiny_tensors()
    for name, weights in tensors.items():
        half = weights.astype(np.float16)
        tensors[name] = half if dtype == "float16" else (weights.view(np.uint32) >> 16).astype(np.uint16)
    source = write_checkpoint(tmp_path / "source", tensors)
    report = compress(source, tmp_path / "out")
    with open_checkpoint(source) as before, open_checkpoint(tmp_path / "out") as after:
        assert after.info("model.norm.weight").dtype == before.info("model.norm.weight").dtype
        assert np.array_equal(before.load("model.norm.weight"), after.load("model.norm.weight"))
    assert all(tensor.relative_error == 0 for tensor in report.kept)


def test_the_config_names_every_grid_and_what_was_left_alone(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    compress(source, tmp_path / "out", CompressOptions(group_size=64))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    made = config.pop("quantization_config")
    assert config == CONFIG
    assert made["format"] == "mixed-precision"
    found = {tuple(group["targets"]): group for group in made["config_groups"].values()}
    embedding = found["lm_head", "model.embed_tokens"]
    assert (embedding["format"], embedding["weights"]["num_bits"]) == ("int-quantized", 8)
    assert found[("Linear",)]["weights"] == {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "dynamic": False,
        "group_size": 64,
    }
    attention = found[r"re:^model\.layers\.\d+\.self_attn\.k_proj$", r"re:^model\.layers\.\d+\.self_attn\.v_proj$"]
    assert attention["weights"]["num_bits"] == 8
    narrower = found[(r"re:^model\.layers\.\d+\.mlp\.down_proj$",)]
    assert narrower["weights"]["group_size"] == 32
    assert list(made["config_groups"].values())[-1]["targets"] == ["Linear"]


def test_embeddings_left_in_16_bits_give_a_plain_w4a16_checkpoint(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    compress(source, tmp_path / "out", CompressOptions(embedding_bits=16, kv_bits=4))
    made = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert made["format"] == "pack-quantized"
    assert made["ignore"] == ["lm_head"]
    with open_checkpoint(tmp_path / "out") as result:
        assert result.info("model.embed_tokens.weight").dtype == "BF16"


def test_the_report_counts_the_bytes_that_are_on_the_disk(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    report = compress(source, tmp_path / "out")
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    parameters = sum(weights.size for weights in tiny_tensors().values())
    assert report.bytes == size
    assert report.parameters == parameters
    assert report.smaller_than_bf16 == pytest.approx(1 - size / 2 / parameters)
    assert report.bits_per_weight == pytest.approx(8 * size / parameters)
    stored = json.loads((tmp_path / "out" / "freehold-report.json").read_text())
    assert stored == json.loads(report.to_json())
    assert len(stored["tensors"]) == len(tiny_tensors())
    assert str(tmp_path) not in report.to_json()


def test_the_report_says_how_far_each_layer_is_from_its_source(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    report = compress(source, tmp_path / "out")
    with open_checkpoint(tmp_path / "out") as result:
        for tensor in report.tensors:
            weights = tiny_tensors()[tensor.name].astype(np.float64)
            true = np.linalg.norm(result.float32(tensor.name) - weights) / np.linalg.norm(weights)
            assert tensor.relative_error == pytest.approx(true, rel=1e-3, abs=1e-9)
    worst = max(report.tensors, key=lambda tensor: tensor.relative_error)
    assert (report.error_max, report.error_max_tensor) == (worst.relative_error, worst.name)
    assert {tensor.reason for tensor in report.kept} == {
        "one-dimensional (norm or bias): negligible size, large effect"
    }


def test_companion_files_come_along_and_the_card_names_source_and_licence(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    (source / "LICENSE").write_text("the licence text")
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    (source / "modeling_evil.py").write_text("raise SystemExit")
    (source / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: org/model\n---\n# Model\n")
    compress(source, tmp_path / "out")
    for name in ("LICENSE", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert not (tmp_path / "out" / "modeling_evil.py").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'license: "apache-2.0"' in card
    assert "Base of the source: org/model" in card


@pytest.mark.parametrize(
    "front", ["base_model: org/base", "base_model:\n- org/base\n- org/other", "base_model: 'org/base'"]
)
def test_a_source_in_the_hub_cache_is_named_by_its_hub_id(tmp_path: Path, front: str) -> None:
    (tmp_path / "models--org--a--b" / "snapshots").mkdir(parents=True)
    source = write_checkpoint(tmp_path / "models--org--a--b" / "snapshots" / "0123abc")
    (source / "README.md").write_text(f"---\n{front}\nlicense: mit\n---\n")
    report = compress(source, tmp_path / "out")
    assert (report.source_name, report.source_base, report.source_licence) == ("org/a--b", "org/base", "mit")
    assert 'base_model: "org/a--b"' in (tmp_path / "out" / "README.md").read_text()


def test_text_from_a_hostile_model_card_stays_text(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    (source / "README.md").write_text('---\nlicense: "x\\"\\nevil: 1 <script>`"\n---\n')
    compress(source, tmp_path / "out")
    front = (tmp_path / "out" / "README.md").read_text().split("---")[1]
    assert [line.split(":")[0] for line in front.strip().splitlines()] == ["library_name", "tags", "license"]
    assert "<script>" not in (tmp_path / "out" / "README.md").read_text().split("---", 2)[2]


def test_a_source_that_is_compressed_already_is_compressed_again_with_a_warning(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    compress(source, tmp_path / "once")
    report = compress(tmp_path / "once", tmp_path / "twice")
    assert any("already quantized" in warning for warning in report.warnings)
    with open_checkpoint(tmp_path / "once") as once, open_checkpoint(tmp_path / "twice") as twice:
        assert once.names() == twice.names()
    # The grid is found again, so that nothing further is lost.
    assert report.error_mean < 0.01


def test_an_unknown_family_is_compressed_with_a_warning(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", model_type="newcomer")
    report = compress(source, tmp_path / "out")
    assert any("unknown model family 'newcomer'" in warning for warning in report.warnings)


def test_a_link_out_of_the_checkpoint_is_not_followed_but_one_into_the_hubs_blobs_is(tmp_path: Path) -> None:
    secret = tmp_path / "private-key"
    secret.write_text("not yours")
    source = write_checkpoint(tmp_path / "source", tiny_tensors())
    (source / "LICENSE").symlink_to(secret)
    with pytest.raises(FormatError, match="outside the checkpoint"):
        compress(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    blobs = tmp_path / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs.parent / "snapshots").mkdir()
    snapshot = write_checkpoint(blobs.parent / "snapshots" / "abc", tiny_tensors())
    (blobs / "1234").write_text("Licence of the model")
    (snapshot / "LICENSE").symlink_to("../../blobs/1234")
    compress(snapshot, tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "Licence of the model"


def test_what_lies_beside_a_gguf_file_about_sampling_comes_along_but_no_token_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(source: Path, out: Destination) -> list[str]:
        """The tiny file holds no tokenizer; one with several end-of-turn ids writes them there."""
        out.write_file("generation_config.json", b'{"eos_token_id": [2, 0]}')
        return []

    monkeypatch.setattr("freehold.compress.companions._save_tokenizer", save)
    source = tmp_path / "source" / "tiny.gguf"
    source.parent.mkdir()
    shutil.copy(Path(__file__).parents[1] / "vectors" / "gguf" / "tiny-llama.gguf", source)
    (source.parent / "generation_config.json").write_text('{"temperature": 0.2, "top_p": 0.9, "eos_token_id": 999}')
    compress(source, tmp_path / "out")
    made = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert made == {"temperature": 0.2, "top_p": 0.9, "eos_token_id": [2, 0]}


def test_a_missing_tokenizer_is_a_warning(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    (source / "tokenizer.json").unlink()
    assert any("tokenizer" in warning for warning in compress(source, tmp_path / "out").warnings)


def test_not_a_number_in_a_layer_is_refused_by_name_and_leaves_nothing(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    source = write_checkpoint(tmp_path / "source", tensors)
    with pytest.raises(FormatError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*finite"):
        compress(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_truncated_source_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(FormatError):
        compress(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_integer_tensors_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", tiny_tensors() | {"steps": np.ones((2, 2), np.int64)})
    with pytest.raises(UnsupportedError, match="steps"):
        compress(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_tensor_that_would_collide_with_a_part_of_another_is_refused(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight_scale"
    source = write_checkpoint(tmp_path / "source", tiny_tensors() | {name: np.ones(3, np.float32)})
    with pytest.raises(FormatError, match=name):
        compress(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_checkpoint_without_linear_layers_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", {"model.norm.weight": np.ones(64, np.float32)})
    with pytest.raises(FormatError, match="linear layers"):
        compress(source, tmp_path / "out")


@pytest.mark.parametrize("where", [".", "..", "../.."])
def test_the_result_never_lies_on_or_around_its_source(tmp_path: Path, where: str) -> None:
    (tmp_path / "deep").mkdir()
    source = write_checkpoint(tmp_path / "deep" / "source")
    with pytest.raises(UsageError, match="holds the source"):
        compress(source, source / where, CompressOptions(overwrite=True))
    assert (source / "config.json").exists()


@pytest.mark.parametrize(
    "wrong",
    [{"bits": 5}, {"group_size": 48}, {"kv_bits": 16}, {"embedding_bits": 4}, {"threads": -1}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_options_that_do_not_exist_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        CompressOptions(**wrong)


def test_progress_ends_at_its_total_in_every_phase(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    seen: dict[str, list[tuple[int, int | None]]] = {}
    compress(source, tmp_path / "out", None, lambda done, total, what: seen.setdefault(what, []).append((done, total)))
    assert set(seen) == {"reading source", "compressing"}
    for steps in seen.values():
        assert steps[-1][0] == steps[-1][1]
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)


CHILD = """
import sys
from pathlib import Path
from freehold.compress import compress
from freehold.process_memory import peak_resident_bytes
before = peak_resident_bytes()
compress(Path(sys.argv[1]), Path(sys.argv[2]))
print(before, peak_resident_bytes())
"""


@pytest.mark.slow
def test_peak_memory_stays_below_twice_the_largest_tensor_and_half_a_gigabyte(tmp_path: Path) -> None:
    rows, columns = 40_000, 2_048  # 328 MB as float32
    big = np.zeros((rows, columns), np.float32)
    big[:] = np.random.default_rng(1).normal(0, 1, columns).astype(np.float32)
    source = write_checkpoint(tmp_path / "source", tiny_tensors(layers=1) | {"model.layers.0.extra.weight": big})
    result = subprocess.run(
        [sys.executable, "-c", CHILD, source, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    before, peak = (int(value) for value in result.stdout.split())
    assert peak < 2 * big.nbytes + 500_000_000
    # Far below the promise: one tensor as stored, a quarter of it in codes waiting to be written, and small blocks.
    assert peak - before < 1.5 * big.nbytes + 100_000_000


def test_scalars_and_tensors_of_three_dimensions_are_kept(tmp_path: Path) -> None:
    extra = {"model.scale": np.array(0.5, np.float32), "model.conv.weight": np.ones((2, 3, 4), np.float32)}
    source = write_checkpoint(tmp_path / "source", tiny_tensors() | extra)
    compress(source, tmp_path / "out")
    with open_checkpoint(tmp_path / "out") as result:
        for name, values in extra.items():
            assert np.array_equal(result.float32(name), values)


def test_writing_by_hand_agrees_with_the_reader(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})
    (tmp_path / "config.json").write_text("{}")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.float32("x").tolist() == [[0, 1, 2], [3, 4, 5]]
