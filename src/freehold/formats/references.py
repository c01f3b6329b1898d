"""What a model reference means, and which files of a repository make a model. Pure rules: no disk, no network."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from freehold.errors import ModelNotFoundError, UnsupportedError

FORMS = "a built-in name (smollm2), a directory, a .gguf file, or org/repo[:variant][@revision]"
_HUB = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95})(?::(?P<variant>\w[\w./-]*))?(?:@(?P<revision>\w[\w./-]*))?",
    re.ASCII,
)
_ALIAS = re.compile(r"[A-Za-z0-9][\w.-]{0,127}", re.ASCII)
_QUANT = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:IQ\d_\w+|Q\d_[A-Z0-9]+(?:_[A-Z0-9]+)*|MXFP4(?:_MOE)?|BF16|FP?16|FP?32))(?=[-.]|$)",
    re.IGNORECASE,
)
_SPLIT = re.compile(r"-\d{5}-of-\d{5}$")
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
# In order of preference when a repository offers several and none was asked for.
PREFERRED = ("Q4_K_M", "Q4_0", "Q4_1", "Q4_K_S", "Q5_K_M", "Q8_0")
BESIDE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "freehold-report.json",
    "README.md",
    "LICENSE",
)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True, slots=True)
class HubReference:
    """`org/repo[:variant][@revision]`; the variant names one GGUF file by its quantization."""

    repo: str
    variant: str | None = None
    revision: str = "main"


def hub_reference(reference: str) -> HubReference | None:
    """The parts of a hub reference, None when it isn't one."""
    match = _HUB.fullmatch(reference)
    if match is None or ".." in reference:
        return None
    return HubReference(match["repo"], match["variant"], match["revision"] or "main")


def is_alias(name: str) -> bool:
    """Whether a name may be a directory of the store."""
    return _ALIAS.fullmatch(name) is not None and name != "builtin" and not name.endswith(".partial")


def looks_like_path(reference: str) -> bool:
    """Whether a reference is meant as a path, there or not."""
    return (
        reference.startswith(("/", "./", "../", "~"))
        or reference in (".", "..")
        or (reference.endswith(".gguf") and ":" not in reference)
    )


def variant_of(file: str) -> str:
    """The quantization in a GGUF file's name ("Q4_K_M"), else its stem."""
    stem = file.rsplit("/", 1)[-1].removesuffix(".gguf")
    found = _QUANT.findall(_SPLIT.sub("", stem))
    return found[-1].upper() if found else stem


def gguf_files(names: Iterable[str]) -> list[str]:
    """GGUF files that are models: no vision projectors, no importance matrices."""
    return sorted(
        name
        for name in names
        if name.endswith(".gguf") and not re.search(r"mmproj|imatrix", name.rsplit("/", 1)[-1], re.IGNORECASE)
    )


def choose(reference: HubReference, names: Iterable[str]) -> list[str]:
    """The files to fetch: one GGUF file, or a directory's config, tokenizer and safetensors.

    Raises:
        ModelNotFoundError: no such variant, or several and none obvious; names those there are.
        UnsupportedError: pickled weights only, a GGUF file in parts, or no weights at all.
    """
    names = sorted(names)
    ggufs, weights = gguf_files(names), safetensors(names)
    if reference.variant is not None or (ggufs and not weights):
        return [_gguf(reference, ggufs)]
    if weights:
        return [*(name for name in names if _beside(name)), *weights]
    if any(name.endswith(PICKLES) for name in names):
        raise UnsupportedError(
            f"{reference.repo} holds pickled weights only (.bin, .pt), which can run any code when loaded",
            hint="look for a copy with .safetensors or .gguf files",
        )
    raise UnsupportedError(f"{reference.repo} holds no .safetensors and no .gguf files", hint="is it a model?")


def safetensors(names: Iterable[str]) -> list[str]:
    """The weight files transformers would load: shards, or the single file, or whatever safetensors lie at the top."""
    top = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    shards = [name for name in top if _SHARD.fullmatch(name)]
    if shards and "model.safetensors" not in top:
        return shards
    return ["model.safetensors"] if "model.safetensors" in top else top


def _beside(name: str) -> bool:
    return name in BESIDE or (name.startswith("additional_chat_templates/") and name.endswith(".jinja"))


def _gguf(reference: HubReference, ggufs: list[str]) -> str:
    offered = {name: variant_of(name) for name in ggufs}
    some = ", ".join(dict.fromkeys(offered.values())) or "none"
    if reference.variant is not None:
        wanted = reference.variant.lower()
        found = [name for name, variant in offered.items() if wanted in (variant.lower(), name.lower())]
        if not found:
            raise ModelNotFoundError(f"{reference.repo} has no variant {reference.variant!r}", hint=f"it has: {some}")
    elif len(ggufs) == 1:
        found = ggufs
    else:
        ranked = [name for variant in PREFERRED for name, offer in offered.items() if offer == variant]
        found = ranked[:1]
        if not found:
            raise ModelNotFoundError(
                f"{reference.repo} has {len(ggufs)} variants, none of them the usual choice",
                hint=f"name one, {reference.repo}:VARIANT; it has: {some}",
            )
    if _SPLIT.search(found[0].removesuffix(".gguf")):
        raise UnsupportedError(
            f"{reference.repo}:{offered[found[0]]} is split into parts, which can't be read",
            hint=f"other variants: {some}",
        )
    return found[0]
