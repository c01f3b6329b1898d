"""A scripted model: reads a conversation as an obedient model would and writes an answer, token by token.

It interprets, it has no answers in store: what it says is made of what it is given. Knows no wire format.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

TOKEN = re.compile(r"\s?\w{1,6}|\s?[^\w\s]|\s")
MODEL, THINKER, BROKEN = "reference-1", "reference-thinks", "reference-breaks"
CONTEXT = 2048


@dataclass
class Turn:
    """One turn: what was said, what was called, or what a call brought."""

    role: str
    text: str = ""
    calls: list[tuple[str, str, str]] = field(default_factory=list)  # id, name, arguments
    call_id: str = ""


@dataclass
class Prompt:
    """A request in no dialect."""

    model: str
    turns: list[Turn]
    tools: dict[str, dict[str, Any]] = field(default_factory=dict)  # name: schema
    choice: str = "auto"  # auto, none, required, or a tool's name
    parallel: bool = True
    format: Any = None  # None, "json", or a schema
    max_tokens: int = 512
    stop: list[str] = field(default_factory=list)
    seed: int | None = None
    bias: dict[str, float] = field(default_factory=dict)

    def tokens(self) -> int:
        """Length in tokens: three for each turn's frame, and the texts."""
        total = 3
        for turn in self.turns:
            total += 3 + len(tokenize(turn.text)) + sum(len(tokenize(name + args)) for _, name, args in turn.calls)
        return total + sum(len(tokenize(name + json.dumps(schema))) for name, schema in self.tools.items())


@dataclass
class Reply:
    """What the model wrote."""

    tokens: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)  # name, arguments
    finish: str = "stop"  # stop, length, calls
    stopped_by: str | None = None
    prompt_tokens: int = 0

    @property
    def text(self) -> str:
        """The content."""
        return "".join(self.tokens)

    @property
    def written(self) -> int:
        """Tokens of the completion."""
        return len(self.tokens) + len(self.reasoning) + sum(len(tokenize(name + args)) for name, args in self.calls)


def tokenize(text: str) -> list[str]:
    """Tokens whose concatenation is the text."""
    return TOKEN.findall(text)


def answer(prompt: Prompt) -> Reply:
    """The model's reply."""
    reply = Reply(prompt_tokens=prompt.tokens())
    if prompt.bias:
        reply.tokens = _biased(prompt)
    else:
        reply.calls = _calls(prompt)
        if not reply.calls:
            reply.tokens = tokenize(_text(prompt))
    if prompt.model == THINKER:
        reply.reasoning = tokenize("The user wants an answer, so let me think about what was said and give one. ")
    _cut(prompt, reply)
    return reply


def _cut(prompt: Prompt, reply: Reply) -> None:
    """Stop strings, then the limit; thinking counts."""
    if reply.calls:
        reply.finish = "calls"
        return
    text = reply.text
    ends = [(text.index(stop), stop) for stop in prompt.stop if stop in text]
    if ends:
        at, reply.stopped_by = min(ends)
        reply.tokens = tokenize(text[:at])
    if len(reply.reasoning) + len(reply.tokens) > prompt.max_tokens:
        reply.reasoning = reply.reasoning[: prompt.max_tokens]
        reply.tokens = reply.tokens[: prompt.max_tokens - len(reply.reasoning)]
        reply.finish, reply.stopped_by = "length", None


def _biased(prompt: Prompt) -> list[str]:
    """The most favoured token over and over, as with a bias that leaves the others no chance."""
    best = max(prompt.bias, key=lambda token: (prompt.bias[token], token))
    return [f" t{best}" if prompt.bias[best] > 0 else " word"] * min(prompt.max_tokens, 8)


def _text(prompt: Prompt) -> str:
    said = "\n".join(turn.text for turn in prompt.turns)
    if prompt.format == "json":
        return json.dumps({"answer": _words(prompt.turns[-1].text)})
    if prompt.format is not None:
        return json.dumps(instance(prompt.format, said), ensure_ascii=False)
    last = prompt.turns[-1]
    if last.role == "assistant":
        return f" and so on behind {_words(last.text)}"
    if last.role == "tool":
        return f"The tool says: {last.text}"
    if counted := re.search(r"[Cc]ount from 1 to (\d+)", last.text):
        return " ".join(str(i) for i in range(1, int(counted[1]) + 1))
    if repeated := re.search(r"[Rr]epeat[^:]*: (.+)", last.text):
        return repeated[1]
    if wanted := re.search(r"say the word (\w+)", last.text):
        return wanted[1]
    known = re.search(r"code word is (\w+)", said)
    if known and "code word" in last.text:
        return f"The code word is {known[1]}."
    return f"You said {_words(last.text)}"


def _words(text: str) -> str:
    return " ".join(text.split()[-12:])


def _calls(prompt: Prompt) -> list[tuple[str, str]]:
    """Named: that tool. Required: those that are mentioned, or the first. Auto: those that are mentioned."""
    if not prompt.tools or prompt.choice == "none":
        return []
    said = prompt.turns[-1].text
    if prompt.choice in prompt.tools:
        names = [prompt.choice]
    else:
        names = [name for name in prompt.tools if name in said and prompt.turns[-1].role == "user"]
        if not names and prompt.choice == "required":
            names = [next(iter(prompt.tools))]
    if not prompt.parallel:
        names = names[:1]
    return [(name, json.dumps(instance(prompt.tools[name], said), ensure_ascii=False)) for name in names]


def instance(schema: Any, said: str) -> Any:
    """An instance of the schema: of words to choose from, one that was said; numbers and strings are taken from it too."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return next((option for option in schema["enum"] if str(option) in said), schema["enum"][0])
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            return {name: instance(properties[name], said) for name in properties}
        case "array":
            return [instance(schema.get("items", {}), said)] * max(1, schema.get("minItems", 1))
        case "boolean":
            return "yes" in said
        case "integer" | "number":
            return int(next(iter(re.findall(r"\d{1,6}", said)), 7))
        case "null":
            return None
    quoted = re.findall(r"'([^']+)'", said)
    return quoted[-1] if quoted else _words(said)


def logprob(tokens: list[str], index: int) -> float:
    """Of the token that was written."""
    return -0.01 - int(hashlib.sha256(repr(tokens[: index + 1]).encode()).hexdigest()[:4], 16) / 2**17


def alternatives(tokens: list[str], index: int, count: int) -> list[tuple[str, float]]:
    """The likeliest tokens in that place, the written one first."""
    first = logprob(tokens, index)
    others = [(f" alt{i}", first - 1.0 - i) for i in range(count - 1)]
    return [(tokens[index], first), *others][:count]
