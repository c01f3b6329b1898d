"""Anthropic's Messages API as a backend; see `upstream.py` for what it shares with others."""

from __future__ import annotations

from freehold.gateway.backends.anthropic_wire import AnthropicWire
from freehold.gateway.backends.keys import Key
from freehold.gateway.backends.providers import known
from freehold.gateway.backends.upstream import UpstreamBackend
from freehold.settings import GuardSettings, UpstreamSettings


class AnthropicBackend(UpstreamBackend):
    """One provider that speaks Anthropic's API.

    Args:
        upstream: its settings.
        guards: `ttft_seconds` bounds connecting.
        key: when the caller has it already; else keys are read as the settings say.
    """

    def __init__(self, upstream: UpstreamSettings, guards: GuardSettings, *, key: Key | None = None) -> None:
        filled, _ = known(upstream)
        wire = AnthropicWire(filled.name, filled.max_tokens)
        super().__init__(filled, guards, wire, None if key is None else (key,))
