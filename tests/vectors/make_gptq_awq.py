"""Makes `tests/vectors/gptq_awq`: layers packed by auto-gptq and autoawq themselves, and what they decode them to.

    pip download --no-deps auto-gptq==0.7.1 autoawq==0.2.9     # unpacked, never installed: they want CUDA
    python tests/vectors/make_gptq_awq.py UNPACKED_AUTO_GPTQ UNPACKED_AUTOAWQ

UNPACKED_* hold the directories `auto_gptq` and `awq`. Needs torch (the oracle environment), so that the tests need
neither. For each case a directory with config.json and model.safetensors (one module, "l"), and in `expected.npz`
`<case>_values`, float32 [N, K]: auto-gptq's own dequantization, read off its forward pass on an identity matrix, and
autoawq's `dequantize_gemm`; with `<case>_codes` uint8 [N, K] and `<case>_zeros` uint8 [N, G] that went in.

Knows nothing of Freehold's own code, on purpose.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent / "gptq_awq"
N, K = 64, 256
CASES = {
    # method, bits, group, symmetric, scattered columns
    "gptq-sym-g128": ("gptq", 4, 128, True, False),
    "gptq-asym-g32": ("gptq", 4, 32, False, False),
    "gptq-row": ("gptq", 4, -1, True, False),
    "gptq-int8-g64": ("gptq", 8, 64, False, False),
    "gptq-act-order": ("gptq", 4, 64, False, True),
    "awq-g128": ("awq", 4, 128, False, False),
    "awq-g32": ("awq", 4, 32, False, False),
}


def module(path: Path, name: str) -> Any:
    """One file of a package, without the package's own imports."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def linear(values: torch.Tensor) -> torch.nn.Linear:
    made = torch.nn.Linear(K, N, bias=False, dtype=torch.float32)
    made.weight.data = values
    return made


def grid(rng: np.random.Generator, bits: int, group: int, symmetric: bool) -> tuple[torch.Tensor, ...]:
    """Codes [N, K], scales [N, G] (each a float16 value) and zero points [N, G]."""
    groups = 1 if group == -1 else K // group
    codes = rng.integers(0, 1 << bits, (N, K))
    scales = (rng.random((N, groups)) * 0.02 + 0.01).astype(np.float16).astype(np.float32)
    # auto-gptq's own packing spoils its neighbours where a zero point is 0: it borrows
    zeros = np.full((N, groups), 1 << (bits - 1)) if symmetric else rng.integers(1, 1 << bits, (N, groups))
    return torch.tensor(codes), torch.tensor(scales), torch.tensor(zeros)


def gptq(cuda: Any, old: Any, bits: int, group: int, data: tuple[torch.Tensor, ...], order: np.ndarray | None) -> Any:
    """auto-gptq's tensors and its dequantization [N, K]."""
    codes, scales, zeros = data
    size = K if group == -1 else group
    index = torch.arange(K) // size if order is None else torch.tensor(order)
    values = scales[:, index] * (codes - zeros[:, index]).float()
    kind = old.QuantLinear if order is None else cuda.QuantLinear
    made = kind(bits, group, K, N, False, weight_dtype=torch.float32)
    made.pack(linear(values), scales.clone(), zeros.clone(), None if order is None else index.int())
    made.use_cuda_fp16 = made.autogptq_cuda_available = False
    tensors = {"qweight": made.qweight, "qzeros": made.qzeros, "scales": made.scales.half(), "g_idx": index.int()}
    decoded = made(torch.eye(K)).T
    return tensors, decoded


def awq(gemm: Any, packing: Any, group: int, data: tuple[torch.Tensor, ...]) -> Any:
    codes, scales, zeros = data
    index = torch.arange(K) // group
    values = scales[:, index] * (codes - zeros[:, index]).float()
    made = gemm.WQLinear_GEMM.from_linear(
        linear(values), 4, group, scales=scales.T.contiguous(), zeros=zeros.T.contiguous()
    )
    tensors = {"qweight": made.qweight, "qzeros": made.qzeros, "scales": made.scales}
    decoded = packing.dequantize_gemm(made.qweight, made.qzeros, made.scales.float(), 4, group).T
    return tensors, decoded


def config(method: str, bits: int, group: int, symmetric: bool, scattered: bool) -> dict[str, Any]:
    if method == "awq":
        quantization = {"quant_method": "awq", "bits": bits, "group_size": group, "zero_point": True, "version": "gemm"}
    else:
        quantization = {
            "quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": scattered,
            "checkpoint_format": "gptq",
        }  # fmt: skip
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "quantization_config": quantization}


def main() -> None:
    gptq_root, awq_root = Path(sys.argv[1]), Path(sys.argv[2])
    layers = gptq_root / "auto_gptq" / "nn_modules" / "qlinear"
    old, cuda = module(layers / "qlinear_cuda_old.py", "gptq_old"), module(layers / "qlinear_cuda.py", "gptq_cuda")
    for name in ("awq", "awq.utils", "awq.modules", "awq.modules.linear", "awq.modules.triton"):
        sys.modules[name] = types.ModuleType(name)  # whose __init__ would import CUDA's kernels
    packing = module(awq_root / "awq/utils/packing_utils.py", "awq.utils.packing_utils")
    module(awq_root / "awq/utils/utils.py", "awq.utils.utils")
    module(awq_root / "awq/utils/module.py", "awq.utils.module")
    gemm = module(awq_root / "awq/modules/linear/gemm.py", "awq.modules.linear.gemm")
    rng, expected = np.random.default_rng(20260301), {}
    for name, (method, bits, group, symmetric, scattered) in CASES.items():
        data = grid(rng, bits, group, symmetric)
        order = rng.permutation(np.arange(K) // group) if scattered else None
        if method == "gptq":
            tensors, decoded = gptq(cuda, old, bits, group, data, order)
        else:
            tensors, decoded = awq(gemm, packing, group, data)
        directory = HERE / name
        directory.mkdir(parents=True, exist_ok=True)
        save_file({f"l.{part}": value.contiguous() for part, value in tensors.items()}, directory / "model.safetensors")
        settings = config(method, bits, group, symmetric, scattered)
        (directory / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
        expected[f"{name}_values"] = decoded.detach().float().numpy()
        expected[f"{name}_codes"] = data[0].numpy().astype(np.uint8)
        expected[f"{name}_zeros"] = data[2].numpy().astype(np.uint8)
    np.savez_compressed(HERE / "expected.npz", **expected)


if __name__ == "__main__":
    main()
