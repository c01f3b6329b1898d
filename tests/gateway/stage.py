"""A scripted backend behind a real server, and an official SDK's client for it: what a dialect makes of neutral events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anthropic
import httpx2
import openai
from tests.gateway import fakes, scripted
from tests.gateway.fakes import Live
from tests.gateway.scripted import Script, Scripted

HI: list[Any] = [{"role": "user", "content": "hi"}]


@dataclass
class Stage:
    """Where a scripted backend is asked in one dialect.

    Args:
        usual: played unless a test says otherwise.
        create: the SDK's method.
        path: of the endpoint.
        asked: fields of every request, unless a test says otherwise.
    """

    live: Live
    backend: Scripted
    client: Any
    usual: Script
    create: Callable[..., Any]
    path: str
    asked: Mapping[str, Any] = field(default_factory=dict)

    def ask(self, script: Script | None = None, **given: Any) -> Any:
        """What the SDK makes of an answer."""
        self.backend.script = self.usual if script is None else script
        return self.create(**{**self.asked, **given})

    def stream(self, script: Script | None = None, **given: Any) -> list[Any]:
        """All events of a stream."""
        return list(self.ask(script, stream=True, **given))

    def post(self, **changes: Any) -> httpx2.Response:
        """The answer as bytes."""
        return httpx2.post(self.live.url + self.path, json={**self.asked, **changes}, trust_env=False)


def openai_client(live: Live) -> openai.OpenAI:
    """OpenAI's SDK with nothing changed but the base URL."""
    return openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0)


def anthropic_client(live: Live) -> anthropic.Anthropic:
    """Anthropic's SDK with nothing changed but the base URL."""
    return anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0)


@contextmanager
def chat(usual: Script) -> Iterator[Stage]:
    """Asked in OpenAI Chat."""
    gateway, backend = scripted.gateway(usual)
    with fakes.live(gateway) as live, openai_client(live) as client:
        create, asked = client.chat.completions.create, {"model": "stage.play", "messages": HI}
        yield Stage(live, backend, client, usual, create, "/v1/chat/completions", asked)


@contextmanager
def responses(usual: Script) -> Iterator[Stage]:
    """Asked in OpenAI Responses."""
    gateway, backend = scripted.gateway(usual)
    with fakes.live(gateway) as live, openai_client(live) as client:
        asked = {"model": "stage.play", "input": "hi"}
        yield Stage(live, backend, client, usual, client.responses.create, "/v1/responses", asked)


@contextmanager
def messages(usual: Script) -> Iterator[Stage]:
    """Asked in Anthropic Messages."""
    gateway, backend = scripted.gateway(usual)
    with fakes.live(gateway) as live, anthropic_client(live) as client:
        asked = {"model": "stage.play", "max_tokens": 50, "messages": HI}
        yield Stage(live, backend, client, usual, client.messages.create, "/v1/messages", asked)
