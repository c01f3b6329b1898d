"""What a server says of itself before the run: model, dialects, and which optional things it can do.

A YAML (or JSON) file. What is declared must hold; what is not is NOT_DECLARED in the certificate, and where a level needs
it, the level is not reached.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from freehold.errors import UsageError

DIALECTS = ("chat", "responses", "messages")
CAPABILITIES = {
    "tools": "function calling, with every form of tool_choice",
    "structured": "response_format json_object and json_schema (strict)",
    "logprobs": "log probabilities of the tokens, with alternatives",
    "logit_bias": "logit_bias by token id",
    "seed": "the same seed gives the same answer",
    "stored": "previous_response_id recalls a stored response",
    "count_tokens": "POST /messages/count_tokens",
    "agentic": "the model decides well by itself when to call a tool and when not",
    "version": "whether the header anthropic-version is required is declared",
    "context": "the context's length is declared, and what is longer is refused",
    "body_limit": "the largest body is declared, and what is larger is refused",
    "auth": "keys are checked",
    "limits": "a key with a rate limit is declared",
    "reasoning": "the model thinks before it answers, and its thinking is told apart",
    "tokenizer": "a prompt's length in tokens is declared, to compare with",
    "prefill": "a last turn of the assistant is the beginning of the answer (Messages)",
    "faults": "a model's name is declared whose streams break in the middle",
}
NEED_MORE = {
    "version": "anthropic_version",
    "context": "context",
    "body_limit": "max_body",
    "auth": "",
    "limits": "requests_per_minute",
    "reasoning": "",
    "prefill": "",
    "tokenizer": "prompt_tokens",
    "faults": "broken_model",
}
"""Declared only by name, because nobody can guess them; where a value is needed, its field."""
BY_DEFAULT = tuple(name for name in CAPABILITIES if name not in NEED_MORE)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What is declared.

    Args:
        model: the name to ask for; "" = the first that is listed.
        aliases: other names under which answers may come.
        context: tokens; max_body: bytes; 0 = not declared.
        requests_per_minute: of the key called "limited".
        anthropic_version: "required" or "optional".
        prompt_tokens: (text, tokens) pairs of the model's tokenizer: tokens of the text alone.
        broken_model: a model whose streams break in the middle. thinker: one that thinks; "" = the same.
    """

    model: str = ""
    dialects: tuple[str, ...] = DIALECTS
    capabilities: tuple[str, ...] = BY_DEFAULT
    aliases: tuple[str, ...] = ()
    context: int = 0
    max_body: int = 0
    requests_per_minute: int = 0
    anthropic_version: str = ""
    prompt_tokens: tuple[tuple[str, int], ...] = ()
    broken_model: str = ""
    thinker: str = ""

    def has(self, capability: str) -> bool:
        """Whether it is declared."""
        return capability in self.capabilities

    def without(self, names: tuple[str, ...]) -> Declaration:
        """With these capabilities taken away.

        Raises:
            UsageError: there is no such capability.
        """
        _known("capability", names, tuple(CAPABILITIES))
        return replace(self, capabilities=tuple(name for name in self.capabilities if name not in names))

    def speaking(self, dialects: tuple[str, ...]) -> Declaration:
        """With these dialects only.

        Raises:
            UsageError: there is no such dialect, or none at all.
        """
        if not dialects:
            raise UsageError(f"expected at least one dialect of {', '.join(DIALECTS)}, found none")
        _known("dialect", dialects, DIALECTS)
        return replace(self, dialects=tuple(name for name in DIALECTS if name in dialects))

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _known(kind: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"no {kind} {name!r}", hint=f"one of {', '.join(known)}")


def load(path: Path) -> Declaration:
    """The declaration in a file.

    Raises:
        UsageError: it can't be read, or is not one; the message names the field.
    """
    try:
        found = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: expected YAML, found {' '.join(str(error).split())[:120]}") from None
    return read(found, str(path))


def read(found: Any, where: str = "declaration") -> Declaration:
    """A declaration out of plain data.

    Raises:
        UsageError: a field is unknown or of the wrong type.
    """
    if not isinstance(found, dict):
        raise UsageError(f"{where}: expected a mapping, found {type(found).__name__}")
    default = Declaration()
    values: dict[str, Any] = {}
    for name, value in found.items():
        if not isinstance(name, str) or not hasattr(default, name) or callable(getattr(default, name)):
            raise UsageError(f"{where}: no field {name!r}", hint=f"one of {', '.join(asdict(default))}")
        values[name] = _value(f"{where}: {name}", getattr(default, name), value)
    declared = replace(default, **values)
    _check(declared, where)
    return declared


def _value(where: str, default: Any, value: Any) -> Any:
    kind = list if isinstance(default, tuple) else type(default)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UsageError(f"{where}: expected {kind.__name__}, found {value!r}")
    return tuple(tuple(item) if isinstance(item, list) else item for item in value) if kind is list else value


def _check(declared: Declaration, where: str) -> None:
    _known("capability", declared.capabilities, tuple(CAPABILITIES))
    declared.speaking(declared.dialects)
    if declared.anthropic_version not in ("", "required", "optional"):
        raise UsageError(
            f"{where}: anthropic_version: expected required or optional, found {declared.anthropic_version!r}"
        )
    for name, field in NEED_MORE.items():
        if declared.has(name) and field and not getattr(declared, field):
            raise UsageError(f"{where}: capability {name} needs the field {field}")
    for pair in declared.prompt_tokens:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], int)):
            raise UsageError(f"{where}: prompt_tokens: expected pairs of text and number, found {pair!r}")
