"""Chat, Responses and Messages, each to each: nothing that a client says is silently dropped on the way to a provider,
and nothing that a provider answers on the way back. Cases are generated from seeds.

Each piece of a conversation carries a word of its own; it must be found in the body for the provider, or what holds it be
named as dropped.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest

from freehold.gateway.backends.anthropic_wire import AnthropicWire
from freehold.gateway.backends.openai_wire import OpenAIWire
from freehold.gateway.backends.providers import OPENAI, PROVIDERS, Provider
from freehold.gateway.backends.sse import EventReader
from freehold.gateway.backends.wire import Wire
from freehold.gateway.conversation import Event, Request
from freehold.gateway.dialects import Encoder, anthropic_messages, openai_chat, openai_responses

SEEDS = range(60)
MEMORY = openai_responses.Memory(lambda id_: [], lambda id_: None, lambda kept: None)
RESPONSES = openai_responses.dialect(MEMORY)
CLIENTS = ("chat", "responses", "messages")
WIRES: dict[str, Wire] = {
    "openai": OpenAIWire("openai", OPENAI),
    "unknown": OpenAIWire("unknown", Provider()),
    "deepseek": OpenAIWire("deepseek", PROVIDERS["deepseek"]),
    "anthropic": AnthropicWire("anthropic"),
}


@dataclass
class Said:
    """A client's body, and for each word in it the names that excuse its absence from the provider's."""

    body: dict[str, Any]
    words: dict[str, set[str]] = field(default_factory=dict)
    facts: list[tuple[str, Any, set[str]]] = field(default_factory=list)  # what it is, its value, excuses


class Writer:
    """Writes random conversations in one dialect."""

    def __init__(self, client: str, seed: int) -> None:
        self.client = client
        self.chance = random.Random(f"{client} {seed}")
        self.said = Said({"model": "any"})
        self.count = 0

    def maybe(self, probability: float = 0.5) -> bool:
        return self.chance.random() < probability

    def word(self, *excuses: str) -> str:
        self.count += 1
        word = f"w{self.count}x{self.chance.randrange(10**6)}"
        self.said.words[word] = set(excuses)
        return word

    def fact(self, name: str, value: Any, *excuses: str) -> None:
        self.said.facts.append((name, value, set(excuses)))

    def conversation(self) -> Said:
        getattr(self, "_" + self.client)()
        return self.said

    # Chat

    def _chat(self) -> None:
        body = self.said.body
        body["messages"] = messages = [{"role": "system", "content": self.word()}] if self.maybe() else []
        messages.append(
            {"role": "user", "content": self._chat_content()}
            | ({"name": self.word("messages[].name")} if self.maybe(0.2) else {})
        )
        if self.maybe():
            messages += self._chat_loop()
        if self.maybe(0.3):
            messages.append({"role": "developer", "content": self.word()})
            messages.append({"role": "user", "content": self.word()})
        self._sampling(
            body, ["temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty"]
        )
        if self.maybe(0.4):
            body["stop"] = [self.word("stop") for _ in range(self.chance.randint(1, 4))]
        if self.maybe(0.3):
            body["logprobs"], body["top_logprobs"] = True, 3
            self.fact("logprobs", 3, "logprobs")
        if self.maybe(0.3):
            body["user"] = self.word()
        if self.maybe(0.3):
            body["max_completion_tokens"] = limit = self.chance.randint(1, 5000)
            self.fact("limit", limit)
        if self.maybe(0.2):
            body["reasoning_effort"] = "high"
            self.fact("effort", "high", "reasoning_effort")
        if self.maybe(0.2):
            body["metadata"] = {"x": self.word("metadata")}
        self._tools(
            body,
            lambda name, about, schema: {
                "type": "function",
                "function": {"name": name, "description": about, "parameters": schema},
            },
            lambda name: {"type": "function", "function": {"name": name}},
        )
        if self.maybe(0.3):
            schema = {"type": "object", "properties": {self.word(): {"type": "string"}}}
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        self._parallel(body, "parallel_tool_calls")

    def _chat_content(self) -> Any:
        if self.maybe():
            return self.word()
        parts: list[dict[str, Any]] = [{"type": "text", "text": self.word()}]
        for _ in range(self.chance.randint(0, 2)):
            detail = {"detail": "low"} if self.maybe(0.3) else {}
            parts.append({"type": "image_url", "image_url": {"url": self._image()} | detail})
            if detail:
                self.fact("detail", "low", "image_url.detail")
        return parts

    def _chat_loop(self) -> list[dict[str, Any]]:
        ids = [f"call_{i}" for i in range(self.chance.randint(1, 3))]
        calls = [
            {
                "id": i,
                "type": "function",
                "function": {"name": self.word(), "arguments": json.dumps({"a": self.word()})},
            }
            for i in ids
        ]
        turn: dict[str, Any] = {
            "role": "assistant",
            "content": self.word() if self.maybe() else None,
            "tool_calls": calls,
        }
        if self.maybe(0.4):
            turn["reasoning_content"] = self.word("thinking")
        return [turn, *({"role": "tool", "tool_call_id": i, "content": self.word()} for i in ids)]

    # Responses

    def _responses(self) -> None:
        body = self.said.body
        if self.maybe():
            body["instructions"] = self.word()
        items: list[dict[str, Any]] = [{"role": "user", "content": self._responses_content()}]
        if self.maybe():
            items += self._responses_loop()
        body["input"] = items if len(items) > 1 or self.maybe() else self.word()
        if isinstance(body["input"], str):
            self.said.words = {w: e for w, e in self.said.words.items() if w in json.dumps(body)}
            self.said.facts = []
        self._sampling(body, ["temperature", "top_p"])
        if self.maybe(0.3):
            body["top_logprobs"] = 3
            self.fact("logprobs", 3, "logprobs")
        if self.maybe(0.3):
            body["max_output_tokens"] = limit = self.chance.randint(1, 5000)
            self.fact("limit", limit)
        if self.maybe(0.2):
            body["reasoning"] = {"effort": "high"}
            self.fact("effort", "high", "reasoning_effort")
        if self.maybe(0.3):
            body["user"] = self.word()
        if self.maybe(0.2):
            body["prompt_cache_key"] = self.word("prompt_cache_key")
        self._tools(
            body,
            lambda name, about, schema: {"type": "function", "name": name, "description": about, "parameters": schema},
            lambda name: {"type": "function", "name": name},
        )
        if self.maybe(0.3):
            schema = {"type": "object", "properties": {self.word(): {"type": "string"}}}
            body["text"] = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
        self._parallel(body, "parallel_tool_calls")

    def _responses_content(self) -> Any:
        if self.maybe():
            return self.word()
        parts: list[dict[str, Any]] = [{"type": "input_text", "text": self.word()}]
        return parts + [{"type": "input_image", "image_url": self._image()} for _ in range(self.chance.randint(0, 2))]

    def _responses_loop(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        if self.maybe(0.4):
            seal = {"encrypted_content": self.word("thinking")} if self.maybe() else {}
            items.append(
                {
                    "type": "reasoning",
                    "id": "rs_1",
                    "summary": [{"type": "summary_text", "text": self.word("thinking")}],
                }
                | seal
            )
        ids = [f"call_{i}" for i in range(self.chance.randint(1, 3))]
        items += [
            {"type": "function_call", "call_id": i, "name": self.word(), "arguments": json.dumps({"a": self.word()})}
            for i in ids
        ]
        return items + [{"type": "function_call_output", "call_id": i, "output": self.word()} for i in ids]

    # Messages

    def _messages(self) -> None:
        body = self.said.body
        body["max_tokens"] = limit = self.chance.randint(1100, 5000)
        self.fact("limit", limit)
        if self.maybe():
            body["system"] = self.word() if self.maybe() else [{"type": "text", "text": self.word()}]
        body["messages"] = [{"role": "user", "content": self._messages_content()}]
        if self.maybe():
            body["messages"] += self._messages_loop()
        self._sampling(body, ["temperature", "top_p", "top_k"])
        if self.maybe(0.4):
            stops = self.chance.randint(1, 6)
            body["stop_sequences"] = [self.word("stop", *(["stop[4:]"] if i >= 4 else [])) for i in range(stops)]
        if self.maybe(0.3):
            body["metadata"] = {"user_id": self.word()}
        if self.maybe(0.3):
            body["thinking"] = {"type": "enabled", "budget_tokens": 1024}
            self.fact("budget", 1024, "thinking.budget_tokens")
        if self.maybe(0.2):
            body["service_tier"] = self.word("service_tier")
        self._tools(
            body,
            lambda name, about, schema: {"name": name, "description": about, "input_schema": schema},
            lambda name: {"type": "tool", "name": name},
            required={"type": "any"},
            auto={"type": "auto"},
        )
        if self.maybe(0.3):
            schema = {"type": "object", "properties": {self.word(): {"type": "string"}}}
            body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}

    def _messages_content(self) -> Any:
        if self.maybe():
            return self.word()
        blocks: list[dict[str, Any]] = [{"type": "text", "text": self.word()}]
        for _ in range(self.chance.randint(0, 2)):
            url = self._image()
            data = url.partition(",")[2]
            base64 = {"type": "base64", "media_type": "image/png", "data": data}
            blocks.append({"type": "image", "source": base64 if data else {"type": "url", "url": url}})
        return blocks

    def _messages_loop(self) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = []
        if self.maybe():
            seal = {"signature": self.word("thinking")} if self.maybe() else {}
            blocks.append({"type": "thinking", "thinking": self.word("thinking")} | seal)
            if self.maybe(0.3):
                blocks.append({"type": "redacted_thinking", "data": self.word("thinking")})
        if self.maybe():
            blocks.append({"type": "text", "text": self.word()})
        ids = [f"toolu_{i}" for i in range(self.chance.randint(1, 3))]
        blocks += [{"type": "tool_use", "id": i, "name": self.word(), "input": {"a": self.word()}} for i in ids]
        return [{"role": "assistant", "content": blocks}, {"role": "user", "content": [self._result(i) for i in ids]}]

    def _result(self, id_: str) -> dict[str, Any]:
        content: Any = self.word()
        if self.maybe(0.3):
            content = [
                {"type": "text", "text": content},
                {"type": "image", "source": {"type": "url", "url": self._image(data=False)}},
            ]
        result: dict[str, Any] = {"type": "tool_result", "tool_use_id": id_, "content": content}
        if self.maybe(0.3):
            result["is_error"] = True
            self.fact("failed", True, "is_error")
        return result

    # Common

    def _image(self, *, data: bool = True) -> str:
        word = self.word()
        return f"data:image/png;base64,{word}" if data and self.maybe() else f"https://example.org/{word}.png"

    def _sampling(self, body: dict[str, Any], names: list[str]) -> None:
        for name in names:
            if self.maybe(0.25):
                whole = name in ("top_k", "seed")
                body[name] = self.chance.randint(1, 99) if whole else round(self.chance.random(), 3)
                self.fact(name, body[name], name)

    def _tools(self, body: dict[str, Any], tool: Callable[..., Any], one: Callable[[str], Any], required: Any = "required",
               auto: Any = "auto") -> None:  # fmt: skip
        if not self.maybe():
            return
        names = [self.word() for _ in range(self.chance.randint(1, 3))]
        body["tools"] = [tool(n, self.word(), {"type": "object", "properties": {self.word(): {}}}) for n in names]
        kind = self.chance.choice(["none said", "auto", "required", "one"])
        if kind != "none said":
            body["tool_choice"] = {"auto": auto, "required": required, "one": one(names[0])}[kind]
            self.fact("choice", names[0] if kind == "one" else kind)

    def _parallel(self, body: dict[str, Any], name: str) -> None:
        if "tools" in body and self.maybe(0.3):
            body[name] = False
            self.fact("parallel", False)


def decoded(client: str, body: dict[str, Any]) -> tuple[Request, Encoder]:
    decode = {"chat": openai_chat.decode, "responses": RESPONSES.decode, "messages": anthropic_messages.decode}[client]
    request, encoder = decode(json.dumps(body).encode(), "r")
    return replace(request, model="theirs"), encoder


def told(wire: str, sent: dict[str, Any], name: str) -> Any:
    """What a provider's body says of a fact."""
    if wire == "anthropic":
        return _told_anthropic(sent, name)
    messages = sent["messages"]
    match name:
        case "logprobs":
            return sent.get("top_logprobs")
        case "limit":
            return sent.get("max_completion_tokens") or sent.get("max_tokens")
        case "effort":
            return sent.get("reasoning_effort")
        case "detail":
            images = [
                p["image_url"]
                for m in messages
                if isinstance(m["content"], list)
                for p in m["content"]
                if "image_url" in p
            ]
            return next((image["detail"] for image in images if "detail" in image), None)
        case "choice":
            choice = sent.get("tool_choice")
            return choice["function"]["name"] if isinstance(choice, dict) else choice
        case "parallel":
            return sent.get("parallel_tool_calls")
    return sent.get(name)


def _told_anthropic(sent: dict[str, Any], name: str) -> Any:
    choice = sent.get("tool_choice", {})
    match name:
        case "limit":
            return sent["max_tokens"]
        case "budget":
            return sent.get("thinking", {}).get("budget_tokens")
        case "choice":
            return {"any": "required", "tool": choice.get("name")}.get(choice.get("type"), choice.get("type"))
        case "parallel":
            return not choice.get("disable_parallel_tool_use")
        case "failed":
            blocks = [b for m in sent["messages"] if isinstance(m["content"], list) for b in m["content"]]
            return any(block.get("is_error") for block in blocks)
    return sent.get(name)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("client", CLIENTS)
def test_whatever_a_client_says_reaches_the_provider_or_is_named_as_dropped(client: str, wire: str) -> None:
    for seed in SEEDS:
        said = Writer(client, seed).conversation()
        request, _ = decoded(client, said.body)
        WIRES[wire].check(request)
        raw = WIRES[wire].body(request).decode()
        dropped, sent = set(WIRES[wire].dropped(request)), json.loads(raw)
        for word, excuses in said.words.items():
            assert word in raw or excuses & dropped, (seed, word, excuses, dropped, said.body, sent)
        for name, value, excuses in said.facts:
            found = told(wire, sent, name)
            assert found == value or excuses & dropped, (seed, name, value, found, dropped, said.body, sent)


@pytest.mark.parametrize(("client", "wire"), [("chat", "unknown"), ("messages", "anthropic")])
def test_nothing_at_all_is_dropped_where_both_speak_the_same_dialect(client: str, wire: str) -> None:
    own = 0
    for seed in SEEDS:
        request, _ = decoded(client, Writer(client, seed).conversation().body)
        foreign = any(not (r.signature or r.redacted) for turn in request.turns for r in turn.reasoning)
        if client == "chat" or not foreign:
            own += 1
            assert WIRES[wire].dropped(request) == ()
    assert own > len(SEEDS) / 2


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
@pytest.mark.parametrize("client", CLIENTS)
def test_nothing_is_named_as_dropped_that_was_not_said(client: str, wire: str) -> None:
    plain = {
        "chat": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
        "responses": {"model": "m", "input": "hi"},
        "messages": {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]},
    }
    assert WIRES[wire].dropped(decoded(client, plain[client])[0]) == ()


@dataclass
class Answered:
    """A provider's stream and what it says."""

    stream: bytes
    text: str
    thinking: str
    seal: str
    calls: list[tuple[str, dict[str, Any]]]
    counts: tuple[int, int, int]  # prompt, cached, completion
    finish: str


def openai_answer(seed: int) -> Answered:
    chance = random.Random(f"openai {seed}")
    told = _content(chance)
    told.seal = ""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": piece} for piece in _pieces(chance, told.thinking)]
    deltas += [{"content": piece} for piece in _pieces(chance, told.text)]
    for i, (name, arguments) in enumerate(told.calls):
        first = {"index": i, "id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": ""}}
        deltas.append({"tool_calls": [first]})
        for piece in _pieces(chance, json.dumps(arguments)):
            deltas.append({"tool_calls": [{"index": i, "function": {"arguments": piece}}]})
    finish = {"tools": "tool_calls", "length": "length", "stop": "stop"}[told.finish]
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    chunks: list[dict[str, Any]] = [{"model": "gpt", "choices": [choice]} for choice in choices]
    prompt, cached, completion = told.counts
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    lines = [json.dumps(chunk) for chunk in [*chunks, {"choices": [], "usage": usage}]]
    told.stream = "".join(f": keep-alive\n\ndata: {line}\n\n" for line in [*lines, "[DONE]"]).encode()
    return told


def anthropic_answer(seed: int) -> Answered:
    chance = random.Random(f"anthropic {seed}")
    told = _content(chance)
    prompt, cached, completion = told.counts
    usage = {"input_tokens": prompt - cached, "cache_read_input_tokens": cached, "output_tokens": 1}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {"model": "claude", "usage": usage}}]
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if told.thinking:
        thoughts = [{"type": "thinking_delta", "thinking": piece} for piece in _pieces(chance, told.thinking)]
        seal = {"type": "signature_delta", "signature": told.seal}
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, [*thoughts, seal]))
    if told.text:
        texts = [{"type": "text_delta", "text": piece} for piece in _pieces(chance, told.text)]
        blocks.append(({"type": "text", "text": ""}, texts))
    for i, (name, arguments) in enumerate(told.calls):
        pieces = [
            {"type": "input_json_delta", "partial_json": piece} for piece in _pieces(chance, json.dumps(arguments))
        ]
        blocks.append(({"type": "tool_use", "id": f"toolu_{i}", "name": name, "input": {}}, pieces))
    for i, (block, deltas) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": i, "content_block": block})
        events += [{"type": "content_block_delta", "index": i, "delta": delta} for delta in deltas]
        events += [{"type": "content_block_stop", "index": i}, {"type": "ping"}]
    reason = {"tools": "tool_use", "length": "max_tokens", "stop": "end_turn"}[told.finish]
    events.append({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": completion}})
    events.append({"type": "message_stop"})
    told.stream = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events).encode()
    return told


def _content(chance: random.Random) -> Answered:
    def words(count: int) -> str:
        return " ".join(f"é{chance.randrange(10**6)}" for _ in range(count))

    text, thinking = words(chance.randint(0, 5)), words(chance.choice([0, 0, 3]))
    calls = [(f"f{i}", {"a": words(2)} if chance.random() < 0.8 else {}) for i in range(chance.choice([0, 0, 1, 3]))]
    finish = "tools" if calls else chance.choice(["stop", "length"])
    prompt = chance.randint(1, 9999)
    counts = (prompt, chance.randint(0, prompt), chance.randint(1, 9999))
    return Answered(b"", text, thinking, f"seal{chance.randrange(10**6)}" if thinking else "", calls, counts, finish)


def _pieces(chance: random.Random, text: str) -> list[str]:
    cuts = sorted({0, len(text), *(chance.randint(0, len(text)) for _ in range(3))})
    return [text[a:b] for a, b in pairwise(cuts)]


def read(wire: str, stream: bytes, request: Request, chance: random.Random) -> list[Event]:
    """The neutral events of a stream that arrives in pieces of any size."""
    reader, answer = EventReader(), WIRES[wire].reader(request)
    events: list[Event] = []
    while stream:
        size = chance.randint(1, 400)
        for event in reader.push(stream[:size]):
            events += answer.read(event)
        stream = stream[size:]
    return events + answer.end()


def shown(
    client: str, whole: dict[str, Any]
) -> tuple[str, list[tuple[str, dict[str, Any]]], tuple[int, int, int], str]:
    """Text, calls, counts and finish of a whole answer."""
    usage = whole["usage"]
    if client == "chat":
        message = whole["choices"][0]["message"]
        calls = [
            (c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message.get("tool_calls") or ()
        ]
        finish = {"tool_calls": "tools"}.get(whole["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"])
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return message["content"] or "", calls, (usage["prompt_tokens"], cached, usage["completion_tokens"]), finish
    if client == "responses":
        items = whole["output"]
        text = "".join(p["text"] for i in items if i["type"] == "message" for p in i["content"])
        calls = [(i["name"], json.loads(i["arguments"])) for i in items if i["type"] == "function_call"]
        finish = "length" if whole["status"] == "incomplete" else "tools" if calls else "stop"
        cached = usage["input_tokens_details"]["cached_tokens"]
        return text, calls, (usage["input_tokens"], cached, usage["output_tokens"]), finish
    blocks = whole["content"]
    text = "".join(b["text"] for b in blocks if b["type"] == "text")
    calls = [(b["name"], b["input"]) for b in blocks if b["type"] == "tool_use"]
    finish = {"tool_use": "tools", "max_tokens": "length", "end_turn": "stop"}[whole["stop_reason"]]
    cached = usage["cache_read_input_tokens"]
    return text, calls, (usage["input_tokens"] + cached, cached, usage["output_tokens"]), finish


ASKS = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "responses": {"model": "m", "input": "hi", "include": ["reasoning.encrypted_content"]},
    "messages": {"model": "m", "max_tokens": 5, "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}]},
}  # fmt: skip


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
@pytest.mark.parametrize("client", CLIENTS)
def test_whatever_a_provider_answers_reaches_the_client(client: str, wire: str) -> None:
    for seed in SEEDS:
        told = (anthropic_answer if wire == "anthropic" else openai_answer)(seed)
        request, encoder = decoded(client, ASKS[client])
        raw = encoder.whole(read(wire, told.stream, request, random.Random(seed)))
        assert shown(client, json.loads(raw)) == (told.text, told.calls, told.counts, told.finish), seed
        assert told.seal.encode() in raw, seed
        assert json.dumps(told.thinking, ensure_ascii=False)[1:-1].encode() in raw, seed
