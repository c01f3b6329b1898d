"""A reference copy off any grid: what a quantizer is measured on when the source is quantized already.

    python bench/offgrid.py MODEL OUT.gguf [--seed 0]

A model that comes from a 4-bit file lies on that file's grid, which flatters quantizers of the same grid (on the
built-in model every linear layer is Q4_1: groups of 32, so asymmetric int4 g32 is flattered most, symmetric int4 g32
less, and the Q8_0 embedding not at all). Here every quantized weight gets noise, uniform over one step of its own grid:
what rounding may have taken away. The values are then as spread as before, but nowhere in particular. The result is a
reference of its own, as float32 GGUF; it is not a better model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from freehold.compress import export_gguf
from freehold.formats import QuantizedTensor, load_tokenizer, open_checkpoint, store
from freehold.formats.tensors import to_float32


def dithered(tensor: QuantizedTensor, random: np.random.Generator) -> np.ndarray:
    step = np.repeat(tensor.scales, tensor.group_size, axis=1)[:, : tensor.codes.shape[1]]
    noise = random.random(tensor.codes.shape, np.float32) - np.float32(0.5)
    return tensor.float32() + noise * np.abs(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random, source = np.random.default_rng(arguments.seed), store.resolve(arguments.model)
    with tempfile.TemporaryDirectory() as work, open_checkpoint(source) as checkpoint:
        tensors, moved = {}, 0
        for name in checkpoint.names():
            loaded = checkpoint.load(name)
            if isinstance(loaded, QuantizedTensor):
                moved += 1
                tensors[name] = dithered(loaded, random)
            else:
                tensors[name] = np.ascontiguousarray(to_float32(loaded))
        directory = Path(work)
        save_file(tensors, directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps(checkpoint.config))
        load_tokenizer(source).save(directory)
        done = export_gguf(directory, source, arguments.out)
    print(f"{arguments.out}: {done.bytes:,} bytes, {moved} of {len(tensors)} tensors moved off their grid")


if __name__ == "__main__":
    main()
