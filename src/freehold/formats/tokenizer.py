"""Text to token ids and back, for models of any origin.

A tokenizer comes from a Hugging Face directory (`tokenizer.json`) or from a GGUF file's metadata. Decoding is done
here, on bytes, so that decoding token by token and decoding the whole give the same text. This module knows no chat
format and no model; it never truncates or pads.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tokenizers

from freehold.errors import FormatError, TokenizerError, UnsupportedError
from freehold.formats.detokenizer import Detokenizer
from freehold.formats.reading import read_json
from freehold.formats.writing import write_file

MAX_VOCABULARY = 4 << 20
NO_TOKENIZER = "a model needs tokenizer.json (or a .gguf file with its vocabulary); slow tokenizers are not read"
_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerParts:
    """What a file says of its tokenizer.

    Attributes:
        core: the encoder.
        spelling: how a token's text spells bytes: "bytes" (GPT-2's alphabet) or "spaces" (SentencePiece).
        drop_space: decoding drops one leading space.
        eos: every id that ends a turn, the model's main one first.
        templates: chat templates by name.
        config: what to keep of tokenizer_config.json.
    """

    core: tokenizers.Tokenizer
    spelling: Literal["bytes", "spaces"]
    drop_space: bool
    bos: int | None
    eos: tuple[int, ...]
    add_bos: bool
    templates: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model directory or a .gguf file.

    Raises:
        TokenizerError: none there, or a broken one.
        UnsupportedError: a kind this version can't decode exactly.
    """
    path = Path(path)
    if path.is_dir():
        return Tokenizer(parts_of_directory(path))
    if path.name == "tokenizer.json" and path.is_file():
        return Tokenizer(parts_of_directory(path.parent))
    if not path.is_file():
        raise TokenizerError(f"no tokenizer at {path}: no such file or directory", hint=NO_TOKENIZER)
    from freehold.formats.gguf import GGUFFile
    from freehold.formats.gguf_tokenizer import parts_of_metadata

    with contextlib.closing(GGUFFile(path)) as file:
        return Tokenizer(parts_of_metadata(file.metadata, str(path)))


class Tokenizer:
    """Encodes and decodes. Safe to share between threads.

    Attributes:
        vocabulary: number of token ids (the largest id plus one); a model's matrices may have more rows.
        bos: id put before a text, if the model has one.
        eos: every id that ends a turn.
        add_bos: whether the model expects BOS before plain text (chat templates write it themselves).
        special: ids of control tokens, which decoding leaves out.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self._parts = parts
        self._core = parts.core
        self._lock = threading.Lock()
        self._added = dict(self._core.get_added_tokens_decoder())
        largest = max(self._core.get_vocab(with_added_tokens=True).values(), default=-1)
        if not 0 <= largest < MAX_VOCABULARY:
            raise TokenizerError(f"expected token ids from 0 to {MAX_VOCABULARY - 1:,}, found {largest:,}")
        self.vocabulary: int = largest + 1
        self.bos = parts.bos
        self.eos: frozenset[int] = frozenset(parts.eos)
        self.add_bos = parts.add_bos and parts.bos is not None
        self.special: frozenset[int] = frozenset(id for id, token in self._added.items() if token.special)
        for id in (*parts.eos, *([] if parts.bos is None else [parts.bos])):
            if not 0 <= id < self.vocabulary:
                raise TokenizerError(f"special token id {id} lies outside the vocabulary of {self.vocabulary:,}")
        self._bytes: dict[int, bytes] = {}

    @property
    def begin(self) -> int | None:
        """The id the model expects before plain text; None where it expects none."""
        return self.bos if self.add_bos else None

    def encode(self, text: str, *, special: bool = True, bos: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            text: any Unicode text (no lone surrogates).
            special: read `<|im_start|>` and the like as the control tokens they name; otherwise as plain text.
            bos: put BOS first if the model expects it and the text doesn't start with it.

        Raises:
            TokenizerError: the text isn't valid Unicode, or the tokenizer can't encode it.
        """
        try:
            with self._lock:  # the switch and its use must not be torn apart by another thread
                self._core.encode_special_tokens = not special
                ids: list[int] = self._core.encode(text, add_special_tokens=False).ids
        except BaseException as error:  # the encoder's panics are no Exception
            surrogate = _SURROGATE.search(text) if isinstance(text, str) else None
            if surrogate:
                raise TokenizerError(
                    f"text is not valid Unicode: lone surrogate at character {surrogate.start()}"
                ) from None
            raise _encoder_failure(error) from None
        if bos and self.add_bos and self.bos is not None and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True, continuing: bool = False) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: token ids.
            skip_special: leave out control tokens.
            continuing: the ids follow other text, so a leading space is kept.
        """
        stream = self.stream(skip_special=skip_special, continuing=continuing)
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(
        self, *, skip_special: bool = True, continuing: bool = False, keep: frozenset[int] = frozenset()
    ) -> Detokenizer:
        """Incremental decoding; gives exactly what `decode` gives with the same arguments.

        Args:
            keep: control tokens that are shown nevertheless.
        """
        shown = self._shown if skip_special else self.token_bytes
        if keep and skip_special:
            return Detokenizer(
                lambda id: self.token_bytes(id) if id in keep else self._shown(id),
                drop_space=self._parts.drop_space and not continuing,
            )
        return Detokenizer(shown, drop_space=self._parts.drop_space and not continuing)

    def token_bytes(self, id: int) -> bytes:
        """The exact bytes one token stands for; b"" for ids without a token (padding rows of a model's matrices).

        Control tokens give their own text.
        """
        found = self._bytes.get(id)
        if found is None:
            if id < 0:
                raise TokenizerError(f"expected a token id, found {id}")
            found = self._bytes[id] = self._spell(id)
        return found

    def token_text(self, id: int) -> str | None:
        """The token as the vocabulary writes it ("Ġthe", "▁the"), None for ids without a token."""
        return self._core.id_to_token(id) if 0 <= id < self.vocabulary else None

    def token_id(self, text: str) -> int | None:
        """The id of a token as the vocabulary writes it, if there is one."""
        return self._core.token_to_id(text)

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json (chat templates included) as transformers reads them.

        A tokenizer with several end-of-turn ids also writes generation_config.json, unless the directory has one.
        """
        write_file(directory / "tokenizer.json", self._core.to_str())
        config = dict(self._parts.config)
        templates = self._parts.templates
        if set(templates) == {"default"}:
            config["chat_template"] = templates["default"]
        elif templates:
            config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
        write_file(directory / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        generation = directory / "generation_config.json"
        if self._parts.eos and not generation.exists():
            values = {"bos_token_id": self.bos, "eos_token_id": list(self._parts.eos)}
            write_file(generation, json.dumps({k: v for k, v in values.items() if v is not None}, indent=2) + "\n")

    def _shown(self, id: int) -> bytes:
        return b"" if id in self.special else self.token_bytes(id)

    def _spell(self, id: int) -> bytes:
        if id in self._added:
            return str(self._added[id].content).encode("utf-8")
        text = self.token_text(id)
        if text is None:
            return b""
        if self._parts.spelling == "bytes":
            try:
                return bytes(BYTE_OF[character] for character in text)
            except KeyError:  # a token outside the alphabet stands for itself, as in the tokenizers library
                return text.encode("utf-8")
        match = _BYTE_TOKEN.fullmatch(text)
        return bytes([int(match[1], 16)]) if match else text.replace("\u2581", " ").encode("utf-8")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes (openai/gpt-2, encoder.py): printable Latin-1 as it is, the rest from U+0100 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF: Mapping[str, int] = _byte_alphabet()


def _encoder_failure(error: BaseException) -> BaseException:
    """The error to raise for what the tokenizers library raised: it panics on regular expressions that blow up."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return TokenizerError(f"the tokenizer failed: {error}")
    return error


def parts_of_directory(directory: Path) -> TokenizerParts:
    """Read tokenizer.json, and what the files beside it say of special tokens and chat templates."""
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise TokenizerError(f"no tokenizer.json in {directory}", hint=NO_TOKENIZER)
    document = _document(file)
    core = load_core(document, str(file))
    spelling, drop_space = _spelling(document, str(file))
    config = _optional(directory / "tokenizer_config.json")
    marks = _optional(directory / "special_tokens_map.json") | {k: v for k, v in config.items() if v is not None}
    generation, model = _optional(directory / "generation_config.json"), _optional(directory / "config.json")
    bos = _id(core, marks.get("bos_token"), model.get("bos_token_id"))
    eos = [*_ids(generation.get("eos_token_id")), *_ids(model.get("eos_token_id"))]
    named = _id(core, marks.get("eos_token"), None)
    if named is not None and (not eos or named not in eos):
        eos.append(named)
    from freehold.formats.template import templates_of_directory

    keep = {k: v for k, v in config.items() if k not in ("chat_template", "auto_map")}  # auto_map names remote code
    return TokenizerParts(
        core=core,
        spelling=spelling,
        drop_space=drop_space,
        bos=bos,
        eos=tuple(dict.fromkeys(eos)),
        add_bos=_adds_bos(core, bos, config),
        templates=templates_of_directory(directory),
        config=keep,
    )


def load_core(document: Mapping[str, Any], where: str) -> tokenizers.Tokenizer:
    """The encoder of a tokenizer.json document, without truncation and padding.

    Raises:
        TokenizerError: the library refuses it.
    """
    try:
        core = tokenizers.Tokenizer.from_str(json.dumps(document))
        core.no_truncation()
        core.no_padding()
    except BaseException as error:
        failure = _encoder_failure(error)
        if isinstance(failure, TokenizerError):
            raise TokenizerError(f"{where} is not a usable tokenizer: {error}") from None
        raise
    return core


def _document(file: Path) -> dict[str, Any]:
    try:
        return read_json(file, "tokenizer file")
    except FormatError as error:
        raise TokenizerError(error.message, hint=error.hint) from None


def _optional(file: Path) -> dict[str, Any]:
    return _document(file) if file.is_file() else {}


def _spelling(document: Mapping[str, Any], where: str) -> tuple[Literal["bytes", "spaces"], bool]:
    """How tokens spell bytes, and whether decoding drops a leading space, from the decoder's description."""
    decoder = document.get("decoder") or {}
    if not isinstance(decoder, dict):
        raise TokenizerError(f"{where}: expected an object as decoder, found {type(decoder).__name__}")
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    kinds = {step.get("type"): step for step in steps if isinstance(step, dict)}
    if "ByteLevel" in kinds:
        return "bytes", False
    if "Metaspace" in kinds:
        step = kinds["Metaspace"]
        prefixed = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
        return "spaces", prefixed != "never"
    if "ByteFallback" in kinds or "Replace" in kinds:
        strip = kinds.get("Strip", {})
        return "spaces", strip.get("content") == " " and strip.get("start", 0) > 0
    found = ", ".join(map(str, kinds)) or "none"
    raise UnsupportedError(
        f"{where}: expected a ByteLevel, Metaspace or ByteFallback decoder, found {found}",
        hint="byte-level BPE and SentencePiece tokenizers are supported",
    )


def _adds_bos(core: tokenizers.Tokenizer, bos: int | None, config: Mapping[str, Any]) -> bool:
    if bos is None:
        return False
    wanted = config.get("add_bos_token")
    if isinstance(wanted, bool):
        return wanted
    return core.encode("", add_special_tokens=True).ids[:1] == [bos]


def _id(core: tokenizers.Tokenizer, mark: Any, fallback: Any) -> int | None:
    """The id of a special token written as text, or as an AddedToken object; else the first of the ids given."""
    content = mark.get("content") if isinstance(mark, dict) else mark
    found = core.token_to_id(content) if isinstance(content, str) else None
    return found if found is not None else next(iter(_ids(fallback)), None)


def _ids(value: Any) -> list[int]:
    found = value if isinstance(value, list) else [value]
    return [id for id in found if isinstance(id, int) and not isinstance(id, bool)]
