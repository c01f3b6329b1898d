"""The files beside the weights: config, tokenizer, licence, model card; and where the source says it came from.

Everything read from the source is untrusted text: it is quoted, cut to length, and never executed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.compress.plan import Plan
from freehold.compress.quantization_config import quantization_config
from freehold.compress.report import Report, by_kind
from freehold.compress.write import Destination
from freehold.errors import FormatError, TokenizerError
from freehold.formats import load_tokenizer
from freehold.formats.reading import read_json

MAX_COPY_BYTES = 100 << 20
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
)
_LEGAL = re.compile(r"^(licen[cs]e|notice|copying)(\.[a-z]{2,4})?$", re.IGNORECASE)
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?$", re.DOTALL | re.MULTILINE)
_CACHED = re.compile(r"^models--([\w.-]+?)--([\w.-]+)$")  # directories of Hugging Face's cache


@dataclass(frozen=True, slots=True)
class Lineage:
    """What the source says about itself; None where it says nothing."""

    name: str | None
    licence: str | None
    base: str | None


def lineage(source: Path) -> Lineage:
    """Name, licence and base model from GGUF metadata, or from the hub cache's path and a model card's front matter."""
    if source.is_file():
        from freehold.formats.gguf import GGUFFile

        file = GGUFFile(source)
        file.close()
        keys = ("general.name", "general.license", "general.base_model.0.name")
        return Lineage(*(_plain(file.metadata.get(key)) for key in keys))
    cached = next((match for part in source.parts if (match := _CACHED.match(part))), None)
    name = f"{cached[1]}/{cached[2]}" if cached else None
    card = source / "README.md"
    if not card.is_file() or card.stat().st_size > 1 << 20:
        return Lineage(name, None, None)
    front = _FRONT_MATTER.search(card.read_text(encoding="utf-8", errors="replace"))
    text = front[1] if front else ""
    return Lineage(name, _field(text, "license"), _field(text, "base_model"))


def write_companions(
    source: Path, config: dict[str, Any], plan: Plan, out: Destination, two_pass: dict[str, int]
) -> tuple[str, ...]:
    """Write config.json (with the marks of the outlier guard), tokenizer and legal files; returns warnings."""
    warnings = []
    made = {key: value for key, value in config.items() if key != "_name_or_path"}
    if made.pop("auto_map", None) is not None:
        warnings.append("the source's own Python code (auto_map) was left out")
    if not made.get("dtype") and not made.get("torch_dtype"):
        made["dtype"] = "bfloat16"
    if two_pass:
        made["freehold"] = {"two_pass": two_pass}
    made["quantization_config"] = quantization_config(plan)
    out.write_file("config.json", _json(made))
    if source.is_dir():
        _copy(source, out)
    if not (out.partial / "tokenizer.json").exists():
        warnings.extend(_save_tokenizer(source, out))
    generation = out.partial / "generation_config.json"
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None}
    beside = _sampling_beside(source)
    if beside or not generation.exists():
        known = read_json(generation, "generation config") if generation.exists() else ids
        out.write_file(generation.name, _json(beside | known))
    return tuple(warnings)


def _sampling_beside(source: Path) -> dict[str, Any]:
    """What a generation_config.json beside a GGUF file says of sampling; token ids are the file's own business."""
    beside = source.parent / "generation_config.json"
    if source.is_dir() or not beside.is_file():
        return {}
    return {
        key: value for key, value in read_json(beside, "generation config").items() if not key.endswith("_token_id")
    }


def model_card(report: Report) -> str:
    """README.md of the result: what it is, where it came from, how it was made, what it lost."""
    front = ["---", "library_name: transformers", "tags: [freehold, compressed-tensors]"]
    if report.source_licence:
        front.append(f"license: {json.dumps(report.source_licence)}")
    if report.source_name and "/" in report.source_name:
        front.append(f"base_model: {json.dumps(report.source_name)}")
    options = report.options
    rows = [
        f"| {row['role']} | {row['tensors']} | {row['source_dtype']} | {row['stored']} | {row['bytes']:,} "
        f"| {row['error_max']:.4f} |"
        for row in by_kind(report.tensors)
    ]
    lines = [
        *front,
        "---",
        f"# {_markdown(report.source_name or report.source)}, int{options['bits']}",
        "",
        f"Made by freehold {report.version} from `{_markdown(report.source)}`.",
        "",
        f"- Source: {_markdown(report.source_name or 'name not declared')}, SHA-256 `{report.source_sha256}`",
        f"- Base of the source: {_markdown(report.source_base or 'not declared')}",
        f"- Licence of the source: {_markdown(report.source_licence or 'not declared; ask before passing this on')}",
        f"- Size: {report.bytes:,} bytes, {report.smaller_than_bf16:.1%} below bf16; "
        f"{report.bits_per_weight:.2f} bits per weight",
        f"- Method: {report.method}",
        *([f"- Tuned: {report.tuned_words}"] if report.tuning else []),
        f"- Relative error of the quantized weights: {report.error_mean:.4f} in all, at most {report.error_max:.4f} "
        f"(`{_markdown(report.error_max_tensor)}`)",
        *(f"- Note: {_markdown(warning)}" for warning in report.warnings),
        "",
        "| role | tensors | source | stored | bytes | largest relative error |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "Every tensor, with the reason for its number format, is in `freehold-report.json`.",
        "",
    ]
    return "\n".join(lines)


def _copy(source: Path, out: Destination) -> None:
    for path in sorted(source.iterdir()):
        if not path.is_file() or (path.name not in _COPIED and not _LEGAL.match(path.name)):
            continue
        if not _belongs(path, source):
            raise FormatError(f"{path} is a link to a file outside the checkpoint", hint="put the file itself there")
        if path.stat().st_size > MAX_COPY_BYTES:
            raise FormatError(f"expected {path} below {MAX_COPY_BYTES:,} bytes, found {path.stat().st_size:,}")
        out.write_file(path.name, path.read_bytes())


def _belongs(path: Path, source: Path) -> bool:
    """Whether a link stays in the checkpoint: in its directory, or with the blobs of its repository in the hub's cache."""
    home, target = source.resolve(), path.resolve()
    return target.is_relative_to(home) or target.is_relative_to(home.parent.parent / "blobs")


def _save_tokenizer(source: Path, out: Destination) -> list[str]:
    try:
        tokenizer = load_tokenizer(source)
    except TokenizerError as error:
        if source.is_file():
            raise
        return [f"no tokenizer was copied: {error.message}"]
    tokenizer.save(out.partial)
    return []


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _field(text: str, key: str) -> str | None:
    found = re.search(rf"^{key}:(?:[ \t]*\r?\n[ \t]*-)?[ \t]*(\S[^\r\n]*)$", text, re.MULTILINE)
    return _plain(found[1].strip("'\" ")) if found else None


def _plain(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    text = " ".join("".join(c if c.isprintable() else " " for c in value).split())
    return text[:100] or None


def _markdown(text: str) -> str:
    """Text from the source without Markdown or HTML in it."""
    return re.sub(r"[`<>|\[\]]", "", text)
