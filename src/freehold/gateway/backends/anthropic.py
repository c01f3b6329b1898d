"""Anthropic's Messages API as a backend; see `upstream.py` for what it shares with others."""

from __future__ import annotations

import msgspec

from freehold.gateway.backends.anthropic_wire import AnthropicWire
from freehold.gateway.backends.keys import Key
from freehold.gateway.backends.providers import known
from freehold.gateway.backends.upstream import UpstreamBackend
from freehold.gateway.conversation import Request
from freehold.settings import GuardSettings, UpstreamSettings

MAX_COUNT = 4096  # bytes of the answer to a count


class _Counted(msgspec.Struct):
    """The answer of https://platform.claude.com/docs/en/api/messages-count-tokens."""

    input_tokens: int


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
        self._asked_for = wire

    async def count(self, request: Request) -> int:
        """Tokens of the prompt, as Anthropic counts them.

        Raises:
            CapabilityError: it can't be asked for such a prompt.
            UpstreamError: it refused, failed, or answered something else.
        """
        self.check(request)
        answer = await self.whole("/messages/count_tokens", self._asked_for.counted_body(request), MAX_COUNT)
        try:
            return msgspec.json.decode(answer, type=_Counted).input_tokens
        except msgspec.DecodeError as problem:
            raise self.error(f"a count that is not as documented ({problem})") from None
