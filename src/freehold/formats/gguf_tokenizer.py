"""The tokenizer inside a GGUF file: vocabulary, scores or merges, and a name for the splitting rules.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md ("Tokenizer"). The metadata dictionary is all this
module sees; reading the file is `gguf.py`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from freehold.errors import TokenizerError, UnsupportedError
from freehold.formats.pretokenizers import pretokenizer
from freehold.formats.tokenizer import TokenizerParts

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MODELS = ("gpt2", "llama")
# Control tokens that end a turn whatever `eos_token_id` says: files often name one of two (llama.cpp does the same).
TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|end|>",
    "<｜end▁of▁sentence｜>",
)

_MARKS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def parts_of_metadata(metadata: Mapping[str, Any], where: str) -> TokenizerParts:
    """Build the tokenizer a GGUF file describes.

    Raises:
        TokenizerError: keys are missing, of the wrong type, or contradict each other.
        UnsupportedError: a tokenizer model other than byte-level BPE ("gpt2") and SentencePiece ("llama").
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        raise TokenizerError(
            f"{where} holds no tokenizer (tokenizer.ggml.model)", hint="use a file that has its vocabulary"
        )
    if kind not in MODELS:
        raise UnsupportedError(f"{where}: tokenizer model {kind!r}; supported are {', '.join(MODELS)}")
    vocabulary = _Vocabulary(metadata, where)
    core, bos_default = _byte_level(vocabulary) if kind == "gpt2" else _sentencepiece(vocabulary)
    core.add_special_tokens(vocabulary.added(special=True))
    core.add_tokens(vocabulary.added(special=False))
    bos, eos = vocabulary.id("bos"), vocabulary.id("eos")
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", bos_default)) and bos is not None
    if add_bos and bos is not None:  # so that transformers, reading what `save` wrote, adds it too
        mark = vocabulary.tokens[bos]
        core.post_processor = processors.TemplateProcessing(
            single=[mark, "$A"], pair=[mark, "$A", mark, "$B:1"], special_tokens=[(mark, bos)]
        )
    return TokenizerParts(
        core=core,
        spelling="bytes" if kind == "gpt2" else "spaces",
        drop_space=kind == "llama" and vocabulary.prefixed,
        bos=bos,
        eos=vocabulary.turn_ends(eos),
        add_bos=add_bos,
        templates=templates_of_metadata(metadata),
        config=vocabulary.config(add_bos),
    )


def templates_of_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name: `tokenizer.chat_template` is "default", `tokenizer.chat_template.NAME` the others."""
    prefix = "tokenizer.chat_template"
    named = {
        key.removeprefix(prefix).removeprefix(".") or "default": text
        for key, text in metadata.items()
        if key == prefix or key.startswith(prefix + ".")
    }
    return {name: text for name, text in named.items() if isinstance(text, str)}


def special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The texts of `bos_token`, `eos_token`, `unk_token` and `pad_token`, as far as the file names them."""
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _MARKS.items()}
    return {name: str(tokens[id]) for name, id in ids.items() if isinstance(id, int) and 0 <= id < len(tokens)}


class _Vocabulary:
    """Tokens with their types, checked."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self.metadata, self.where = metadata, where
        self.tokens = [str(token) for token in self._array("tokens", str)]
        self.ids = {token: id for id, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise TokenizerError(f"{where}: {len(self.tokens) - len(self.ids)} tokens occur twice")
        types = self._array("token_type", int) if self.has("token_type") else [NORMAL] * len(self.tokens)
        if len(types) != len(self.tokens):
            raise TokenizerError(f"{where}: {len(self.tokens)} tokens but {len(types)} token types")
        self.types = [int(kind) for kind in types]
        for name in ("bos", "eos", "eot", "eom"):  # whatever the types say, these steer generation
            if (id := self.id(name)) is not None:
                self.types[id] = CONTROL
        self.prefixed = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))

    def has(self, key: str) -> bool:
        return f"tokenizer.ggml.{key}" in self.metadata

    def merges(self) -> list[tuple[str, str]]:
        pairs = []
        for line in self._array("merges", str):
            at = line.find(" ", 1)
            if at < 0:
                raise TokenizerError(f"{self.where}: expected two tokens in a merge, found {line!r}")
            pairs.append((line[:at], line[at + 1 :]))
        return pairs

    def scores(self) -> Sequence[float]:
        scores = self._array("scores", (int, float))
        if len(scores) != len(self.tokens):
            raise TokenizerError(f"{self.where}: {len(self.tokens)} tokens but {len(scores)} scores")
        return scores

    def id(self, name: str) -> int | None:
        id = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if id is None:
            return None
        if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id < len(self.tokens):
            raise TokenizerError(f"{self.where}: {name}_token_id is {id!r}, outside the {len(self.tokens)} tokens")
        return id

    def added(self, *, special: bool) -> list[AddedToken]:
        kinds = (CONTROL, UNKNOWN) if special else (USER_DEFINED,)
        return [
            AddedToken(token, special=special, normalized=False)
            for token, kind in zip(self.tokens, self.types, strict=True)
            if kind in kinds and token
        ]

    def turn_ends(self, eos: int | None) -> tuple[int, ...]:
        found = [eos, self.id("eot"), self.id("eom")]
        found += [self.ids[name] for name in TURN_ENDS if name in self.ids and self.types[self.ids[name]] == CONTROL]
        return tuple(dict.fromkeys(id for id in found if id is not None))

    def config(self, add_bos: bool) -> dict[str, Any]:
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": add_bos,
            "clean_up_tokenization_spaces": False,
        } | special_tokens(self.metadata)

    def _array(self, key: str, kind: type | tuple[type, ...]) -> Sequence[Any]:
        found = self.metadata.get(f"tokenizer.ggml.{key}")
        if found is None:
            raise TokenizerError(f"{self.where} lacks tokenizer.ggml.{key}")
        values = found.tolist() if hasattr(found, "tolist") else found
        if not isinstance(values, (list, tuple)) or not values or not all(isinstance(value, kind) for value in values):
            raise TokenizerError(f"{self.where}: tokenizer.ggml.{key} is not a list of the expected type")
        return values


def _byte_level(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """GPT-2's byte-level BPE with the file's splitting rules; also whether BOS is the default."""
    name = vocabulary.metadata.get("tokenizer.ggml.pre", "default")
    rules = pretokenizer(str(name))
    core = Tokenizer(_bpe(vocabulary, vocabulary.merges(), ignore_merges=rules.whole_words))
    if rules.nfc:
        core.normalizer = normalizers.NFC()
    splits: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rules.patterns]
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    return core, rules.bos


def _sentencepiece(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """SentencePiece BPE: the best-scored pair merges first; characters outside the vocabulary become bytes."""
    unknown = vocabulary.id("unknown")
    core = Tokenizer(
        _bpe(
            vocabulary,
            _merges_by_score(vocabulary),
            byte_fallback=True,
            fuse_unk=True,
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
        )
    )
    spaces: list[Any] = [normalizers.Prepend("\u2581")] if vocabulary.prefixed else []
    core.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", "\u2581")])
    steps: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.prefixed:
        steps.append(decoders.Strip(" ", 1, 0))
    core.decoder = decoders.Sequence(steps)
    return core, True


def _merges_by_score(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Every way to make a token of two others, best score first.

    SentencePiece merges whatever neighbours make the best-scored token; as a list of merges, that is all splits of all
    tokens in order of score (Hugging Face converts Llama's tokenizer in the same way).
    """
    scores, tokens = vocabulary.scores(), vocabulary.tokens
    usable = {
        token: id
        for id, (token, kind) in enumerate(zip(tokens, vocabulary.types, strict=True))
        if kind in (NORMAL, USER_DEFINED, UNUSED)
    }
    pairs: list[tuple[float, int, int]] = []
    find = usable.get
    for token, id in usable.items():
        score = -scores[id]
        for at in range(1, len(token)):
            left = find(token[:at])
            if left is not None and (right := find(token[at:])) is not None:
                pairs.append((score, left, right))
    pairs.sort()
    return [(tokens[left], tokens[right]) for _, left, right in pairs]


def _bpe(vocabulary: _Vocabulary, merges: list[tuple[str, str]], **options: Any) -> models.BPE:
    try:
        return models.BPE(vocab=vocabulary.ids, merges=merges, **options)
    except Exception as error:
        raise TokenizerError(f"{vocabulary.where}: merges and tokens don't fit together: {error}") from None
