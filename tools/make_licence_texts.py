"""Makes src/freehold/provenance/knowledge/texts.msgpack: fingerprints of licence texts, from ScanCode's LicenseDB.

    python tools/make_licence_texts.py [path of the wheel]

The texts come inside the wheel of scancode-toolkit-mini (pinned below; its licence data is CC-BY-4.0, by AboutCode). Only
hashes of shingles, names and categories are kept. All SPDX licences are taken, and the model licences of MODELS.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import msgspec
import yaml

from freehold.provenance.texts import Fingerprint, fingerprint

WHEEL = "scancode-toolkit-mini==32.5.0"
OUT = Path(__file__).parent.parent / "src/freehold/provenance/knowledge/texts.msgpack"
FOLDER = "licensedcode/data/licenses/"
MODELS = {
    "bigcode-open-rail-m-v1": "LicenseRef-BigCode-OpenRAIL-M",
    "bigscience-open-rail-m": "LicenseRef-BigScience-OpenRAIL-M",
    "bigscience-open-rail-m2": "LicenseRef-BigScience-OpenRAIL-M",
    "bigscience-rail-1.0": "LicenseRef-BigScience-RAIL-1.0",
    "deepseek-la-1.0": "LicenseRef-DeepSeek-1.0",
    "exaone-ai-model-1.1-nc": "LicenseRef-EXAONE-1.1-NC",
    "falcon-2-11b-1.0": "LicenseRef-Falcon-2",
    "gemma-tou-2024-04-01": "LicenseRef-Gemma",
    "gemma-tou-2025-03-24": "LicenseRef-Gemma",
    "llama-2-license-2023": "LicenseRef-Llama-2",
    "llama-3.1-license-2024": "LicenseRef-Llama-3.1",
    "llama-3.2-license-2024": "LicenseRef-Llama-3.2",
    "llama-3.3-license-2024": "LicenseRef-Llama-3.3",
    "llama-4-cla-2025": "LicenseRef-Llama-4",
    "llama-license-2023": "LicenseRef-Llama-1",
    "moonshot-ai-modified-mit-2025": "LicenseRef-Moonshot-Modified-MIT",
    "nvidia-open-model-2025-04-28": "LicenseRef-NVIDIA-Open-Model",
    "qwen-2024": "LicenseRef-Qwen-2024",
    "stability-ai-community-2024": "LicenseRef-Stability-Community",
    "stability-ai-nc-2023-12-06": "LicenseRef-Stability-NC",
    "tongyi-qianwen-2023": "LicenseRef-Tongyi-Qianwen",
}


def main() -> None:
    """Read the wheel, write the fingerprints."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(sys.argv[1]) if len(sys.argv) > 1 else download(Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            names = sorted(name for name in archive.namelist() if re.fullmatch(FOLDER + r"[^/]+\.LICENSE", name))
            marks = [mark for name in names if (mark := read(name, archive.read(name).decode())) is not None]
    OUT.write_bytes(msgspec.msgpack.encode(marks))
    print(f"{len(marks)} texts of {len({mark.id for mark in marks})} licences, {OUT.stat().st_size:,} bytes")


def download(folder: Path) -> Path:
    """The pinned wheel, by pip."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), WHEEL], check=True
    )
    return next(folder.glob("*.whl"))


def read(name: str, content: str) -> Fingerprint | None:
    """One licence; None for exceptions, old identifiers and what is not asked for."""
    parts = re.match(r"---\n(.*?)\n---\n(.*)", content, re.DOTALL)
    if parts is None:
        return None
    facts, text = yaml.safe_load(parts[1]), parts[2]
    key = name.removeprefix(FOLDER).removesuffix(".LICENSE")
    licence = MODELS.get(key) or facts.get("spdx_license_key", "LicenseRef-")
    if facts.get("is_exception") or facts.get("is_deprecated"):
        return None
    if key not in MODELS and licence.startswith("LicenseRef-"):
        return None
    mark = fingerprint(licence, facts["name"], facts["category"], text)
    return mark if mark.shingles >= 20 else None  # a sentence is no text: too easy to meet


if __name__ == "__main__":
    main()
