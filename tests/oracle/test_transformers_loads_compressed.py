"""transformers with compressed-tensors loads what `compress` writes, and sees the very weights we see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.compress import CompressOptions, compress
from freehold.engine.calibrate import calibrate
from freehold.formats import open_checkpoint
from freehold.formats.digest import digest
from tests.formats.packing import packed
from tests.oracle.recorded import MODELS, TINY, smollm2, vector

torch = pytest.importorskip("torch", reason="needs torch: run `make oracle`")
transformers = pytest.importorskip("transformers", reason="needs transformers: run `make oracle`")
pytest.importorskip("compressed_tensors", reason="needs compressed-tensors: run `make oracle`")

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]  # their warnings, not ours

VARIANTS = {
    "groups of 64": CompressOptions(group_size=64),
    "8 bits": CompressOptions(bits=8),
    "linear layers only": CompressOptions(kv_bits=4, embedding_bits=16),
}


def load(directory: Path) -> Any:
    """The model in float32, with nothing missing, unexpected or of another shape."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    # A quantized Gemma embedding: its scale is a buffer that no checkpoint stores. compressed-tensors makes a parameter
    # of it, so that transformers reports it as missing, after it has filled it in rightly.
    scale = "model.embed_tokens.embed_scale"
    if scale in info["missing_keys"]:
        assert float(model.get_parameter(scale)) == model.config.hidden_size**0.5
        info["missing_keys"].remove(scale)
    assert not any(info.values()), info
    return model.eval()


def with_our_weights(directory: Path) -> Any:
    """The same architecture, filled with what our reader gives."""
    config = transformers.AutoConfig.from_pretrained(directory)
    del config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with open_checkpoint(directory) as checkpoint:
        state = {name: torch.from_numpy(checkpoint.float32(name).copy()) for name in checkpoint.names()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, eos_token_id=None
    )
    return [int(token) for token in out[0, len(prompt) :]]


@pytest.mark.parametrize("name", TINY)
def test_transformers_sees_our_weights_and_says_the_same(name: str, tmp_path: Path) -> None:
    compare(name, CompressOptions(), tmp_path)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("name", ["llama-tied", "qwen2-untied"])
def test_transformers_sees_our_weights_with_other_options_too(
    name: str, options: CompressOptions, tmp_path: Path
) -> None:
    compare(name, options, tmp_path)


@pytest.mark.parametrize("name", TINY)
def test_transformers_sees_the_weights_of_a_planned_mix(name: str, tmp_path: Path) -> None:
    prompt = vector(MODELS / name / "expected.npz").prompt
    source, ids = MODELS / name, (list(prompt) * 64)[:512]
    calibrate(source, ids, tmp_path / "statistics", source=digest(source), text="the recorded prompt")
    options = CompressOptions(budget=4.75, stretch=True, embedding_bits=8)
    compare(name, options, tmp_path, statistics=tmp_path / "statistics")


@pytest.mark.parametrize("bits", [3, 5, 6])
def test_transformers_sees_the_weights_of_widths_between(bits: int, tmp_path: Path) -> None:
    prompt = vector(MODELS / "qwen2-untied" / "expected.npz").prompt
    source, ids = MODELS / "qwen2-untied", (list(prompt) * 64)[:512]
    calibrate(source, ids, tmp_path / "statistics", source=digest(source), text="the recorded prompt")
    options = CompressOptions(uniform=f"int{bits} g32", embedding_bits=8)
    compare("qwen2-untied", options, tmp_path, statistics=tmp_path / "statistics")


def test_transformers_sees_the_weights_of_a_gptq_source_that_was_kept(tmp_path: Path) -> None:
    source = packed(MODELS / "llama-tied", tmp_path / "source", "gptq", 32, symmetric=True)
    compare("llama-tied", CompressOptions(), tmp_path, source=source)
    with open_checkpoint(source) as before, open_checkpoint(tmp_path / "out") as after:
        name = "model.layers.0.mlp.up_proj.weight"
        assert np.array_equal(before.float32(name), after.float32(name))


def compare(
    name: str, options: CompressOptions, tmp_path: Path, statistics: Path | None = None, source: Path | None = None
) -> None:
    compress(source or MODELS / name, tmp_path / "out", options, statistics=statistics)
    theirs, ours = load(tmp_path / "out"), with_our_weights(tmp_path / "out")
    prompt = vector(MODELS / name / "expected.npz").prompt
    assert greedy(theirs, prompt, 32) == greedy(ours, prompt, 32)  # also makes transformers decompress
    found = dict(theirs.named_parameters())
    with open_checkpoint(tmp_path / "out") as checkpoint:
        for tensor in checkpoint.names():
            assert np.array_equal(found[tensor].detach().numpy(), checkpoint.float32(tensor)), tensor


@pytest.mark.slow
def test_smollm2_compressed_knows_the_capital_of_france_in_transformers_too(tmp_path: Path) -> None:
    report = compress(smollm2(), tmp_path / "out")
    assert report.smaller_than_bf16 >= 0.65
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer.encode("The capital of France is")
    theirs = greedy(load(tmp_path / "out"), prompt, 16)
    assert theirs == greedy(with_our_weights(tmp_path / "out"), prompt, 16)
    assert "Paris" in tokenizer.decode(theirs)
