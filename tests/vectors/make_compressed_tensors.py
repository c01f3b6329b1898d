"""Makes `tests/vectors/compressed_tensors`: a directory packed by the compressed-tensors package, and its values.

    python tests/vectors/make_compressed_tensors.py

Needs compressed-tensors and torch (the oracle environment). `model.safetensors` and `config.json` hold one layer for
each scheme; `expected.npz` the weights as the package decompresses them with float32 scales. Shapes are odd on purpose,
so that packed rows end in the middle of a word. Knows nothing of Freehold's own code, on purpose.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from compressed_tensors.compressors.naive_quantized.base import IntQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

HERE = Path(__file__).parent / "compressed_tensors"

LAYERS = {
    # name: (rows, columns, bits, group size or None for one scale per row, symmetric, format, type of the scales)
    "int4_group": (20, 96, 4, 32, True, "pack-quantized", torch.bfloat16),
    "int4_group_asymmetric": (20, 128, 4, 64, False, "pack-quantized", torch.float32),
    "int4_channel": (5, 51, 4, None, True, "pack-quantized", torch.float16),
    "int4_channel_asymmetric": (7, 51, 4, None, False, "pack-quantized", torch.float32),
    "int8_group_asymmetric": (6, 256, 8, 128, False, "pack-quantized", torch.float32),
    "int8_channel": (5, 50, 8, None, True, "pack-quantized", torch.float32),
    "int8_plain": (6, 40, 8, None, True, "int-quantized", torch.bfloat16),
}


def main() -> None:
    """Write the three files."""
    torch.manual_seed(0)
    HERE.mkdir(exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    expected: dict[str, np.ndarray] = {}
    groups: dict[str, object] = {}
    for name, (rows, columns, bits, size, symmetric, layout, scale_type) in LAYERS.items():
        args = QuantizationArgs(
            num_bits=bits, group_size=size, symmetric=symmetric, strategy="group" if size else "channel"
        )
        scheme = QuantizationScheme(targets=[f"re:.*{name}$"], weights=args, format=layout)
        groups[name] = scheme.model_dump(mode="json", exclude_none=True)
        count = columns // size if size else 1
        scale = (torch.rand(rows, count) * 0.02 + 0.001).to(scale_type)
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        zero = torch.zeros(rows, count, dtype=torch.int8)
        if not symmetric:
            zero = torch.randint(low, high + 1, (rows, count), dtype=torch.int8)
        weight = torch.randn(rows, columns) * 0.05
        compressor = PackedQuantizationCompressor if layout == "pack-quantized" else IntQuantizationCompressor
        state = {"weight": weight, "weight_scale": scale.float(), "weight_zero_point": zero}
        packed = compressor.compress(state, scheme)
        packed["weight_scale"] = scale
        tensors |= {f"model.{name}.{part}": value.contiguous() for part, value in packed.items()}
        exact = compressor.decompress(packed | {"weight_scale": scale.float()}, scheme)["weight"]
        expected[f"model.{name}.weight"] = exact.float().numpy()
    tensors["model.norm.weight"] = torch.randn(40).to(torch.bfloat16)
    tensors["model.embed_tokens.weight"] = torch.randn(9, 40).to(torch.bfloat16)
    expected |= {name: tensors[name].float().numpy() for name in ("model.norm.weight", "model.embed_tokens.weight")}
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head"],
    }
    save_file(tensors, HERE / "model.safetensors")
    config = {"model_type": "llama", "quantization_config": quantization}
    (HERE / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(HERE / "expected.npz", **expected)


if __name__ == "__main__":
    main()
