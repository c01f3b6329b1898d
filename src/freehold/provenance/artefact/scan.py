"""Licences in files that no name points to: SPDX tags at the head of sources, and licence texts under any name.

Bounded in files and bytes; what a bound left out is told, and no artefact with such files is simply allowed. Knows no
kinds of artefacts. A licence that prose only mentions is not looked for here.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from freehold.provenance import texts
from freehold.provenance.artefact.facts import Artefact, Detection, File
from freehold.provenance.artefact.tree import INSTALLED, Tree, digest_of, text_of

MAX_SCANNED = 10_000  # files whose head is read
MAX_HEAD = 4096  # bytes of a head: where a tag stands
MAX_WHOLE = 65_536  # bytes that are read of a file that may be a licence text (GPL-3.0 has 35,000)
MAX_TEXTS = 500  # files whose words are looked up
_CODE_SUFFIXES = """
    .py .pyi .pyx .pxd .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .m .mm .rs .go .java .kt .scala .swift .js .mjs .cjs
    .ts .tsx .jsx .vue .css .scss .sh .bash .zsh .fish .ps1 .bat .pl .pm .rb .php .lua .r .jl .hs .ml .clj .ex
    .exs .erl .f .f90 .for .s .asm .sql .proto .cmake .mk .toml .cfg .ini .yaml .yml .gradle .tf .nix .el .vim
    .dart .cs .fs .vb .zig .v .sv .vhd .glsl .metal .wgsl .cl .jinja .j2 .tex .build .in
"""
CODE = frozenset(_CODE_SUFFIXES.split())
_BINARY_SUFFIXES = """
    .safetensors .gguf .bin .pt .pth .onnx .ftz .tflite .h5 .keras .npz .npy .ckpt .pb .mlmodel .joblib .pkl
    .model .parquet .arrow .jsonl .ndjson .csv .tsv .gz .zst .xz .bz2 .json .jsonld .db .sqlite .dat .vec .zip
    .tar .whl .so .pyd .dll .dylib .a .o .pyc .png .jpg .jpeg .gif .webp .svg .ico .pdf .woff .woff2 .ttf .otf
    .mp3 .wav .mp4 .msgpack .lock .ipynb
"""
_BINARY = frozenset(_BINARY_SUFFIXES.split())
_LEGAL_WORDS = re.compile(r"licen[cs]|permission|redistribut|public domain|warrant", re.IGNORECASE)


def scattered(tree: Tree, artefact: Artefact, files: list[File], read_before: int) -> list[Detection]:
    """Tags and licence texts in files that are not legal files by name; notes tell how much was read.

    Args:
        tree, artefact: what is read, and where notes go.
        files: the files that were not read yet.
        read_before: how many were.
    """
    readable = [file for file in files if file.size and _suffix(file.name) not in _BINARY]
    found: list[Detection] = []
    looked_up = number = 0
    for file in readable[:MAX_SCANNED]:
        prose = _suffix(file.name) not in CODE
        content = tree.read(file.name, MAX_WHOLE if prose else MAX_HEAD)
        if not content:
            break
        number += 1
        matches = _head(content, prose)
        if prose and _may_be_legal(content):
            looked_up += 1
            words = texts.by_words(text_of(content)) if looked_up <= MAX_TEXTS else []
            matches = [*(match for match in words if match.how == "text"), *matches]
        found += _detections(matches, tree, file)
    _tell(tree, artefact, len(readable) - number, max(0, looked_up - MAX_TEXTS), read_before + number)
    return found


def _tell(tree: Tree, artefact: Artefact, unread: int, not_matched: int, read: int) -> None:
    artefact.notes.append(
        f"{read:,} of {len(artefact.files):,} files were read for licences"
        + (": weights, data and pictures are not searched" if read + unread < len(artefact.files) else "")
    )
    left = [name for name in tree.left_out() if PurePosixPath(name).name in INSTALLED]
    if deep := sorted({*tree.left_out()} - {*left}):
        artefact.unread.append(f"{deep[0]}{' and others' if len(deep) > 1 else ''}: nested too deep, and not read")
    if left:
        artefact.notes.append(f"not entered: {', '.join(left[:10])}{' and more' if len(left) > 10 else ''}")
    if unread:
        artefact.unread.append(f"{unread:,} files that may hold licences were not read, {read:,} were")
    if not_matched:
        artefact.unread.append(f"{not_matched:,} files with legal words were not compared with licence texts")


def _head(content: bytes, prose: bool) -> list[texts.Match]:
    """Tags in comments; in sources also the notice that GNU licences ask for."""
    head = content[:MAX_HEAD]
    found = texts.comment_tags(text_of(head)) if b"SPDX-License-Identifier" in head else []
    return found if found or prose or b"GNU" not in head else texts.gnu_notices(text_of(head))


def _may_be_legal(content: bytes) -> bool:
    return b"\0" not in content and len(content) >= 200 and _LEGAL_WORDS.search(text_of(content)) is not None


def _detections(matches: list[texts.Match], tree: Tree, file: File) -> list[Detection]:
    digest = digest_of(tree.read(file.name)) if matches else ""
    return [
        Detection(match.licence, match.how, match.score, file.name, digest, match.quote, False, match.near)
        for match in matches
    ]


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
