"""The official SDKs as readers: their clients, fed with recorded answers instead of a network. Nothing is sent.

They are needed for one requirement only (`pip install 'freehold[certify]'`).
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import httpx2

from freehold.certify.transcript import Exchange, Untestable


def parsed(dialect: str, x: Exchange) -> str:
    """The text that the SDK reads out of an answer.

    Raises:
        Untestable: the SDKs are not here, or there is no answer to read.
        Exception: whatever the SDK raises over the answer.
    """
    streamed = bool(x.call.json.get("stream"))
    _ = x.events if streamed else x.good  # only answers: what failed is another requirement's matter
    body = {key: value for key, value in x.call.json.items() if key != "stream"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return READERS[dialect](_client(dialect, x), body, streamed)


def versions() -> dict[str, str]:
    """The SDKs' versions.

    Raises:
        Untestable: they are not here.
    """
    openai, anthropic = _sdks()
    return {"openai": openai.__version__, "anthropic": anthropic.__version__}


@cache
def _sdks() -> tuple[Any, Any]:
    try:
        import anthropic
        import openai
    except ImportError as error:
        raise Untestable("", f"the SDK is not installed ({error.name}): pip install 'freehold[certify]'") from None
    return openai, anthropic


class _Recorded:
    """A network on which the answer is there already."""

    def __init__(self) -> None:
        self.answer: Exchange | None = None

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if self.answer is None:
            raise httpx2.ConnectError("nothing is recorded")
        framing = ("transfer-encoding", "content-length")
        headers = [(name, value) for name, value in self.answer.answer.headers if name.lower() not in framing]
        return httpx2.Response(self.answer.status, headers=headers, content=self.answer.answer.body)


@cache
def _clients(dialect: str) -> tuple[Any, _Recorded]:
    """The SDK's client of a dialect, and its network. Made once: that takes longer than to read an answer."""
    openai, anthropic = _sdks()
    recorded = _Recorded()
    client = httpx2.Client(transport=httpx2.MockTransport(recorded))
    kind = anthropic.Anthropic if dialect == "messages" else openai.OpenAI
    return kind(api_key="none", base_url="http://recorded", http_client=client, max_retries=0), recorded


def _client(dialect: str, x: Exchange) -> Any:
    """A client whose network is the recorded answer."""
    client, recorded = _clients(dialect)
    recorded.answer = x
    return client


def _chat(client: Any, body: dict[str, Any], streamed: bool) -> str:
    if not streamed:
        return str(client.chat.completions.create(**body).choices[0].message.content or "")
    chunks = client.chat.completions.create(**body, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def _responses(client: Any, body: dict[str, Any], streamed: bool) -> str:
    if not streamed:
        return str(client.responses.create(**body).output_text)
    final: Any = None
    with client.responses.stream(**body) as stream:
        for event in stream:
            final = getattr(event, "response", final)
    return str(final.output_text)


def _messages(client: Any, body: dict[str, Any], streamed: bool) -> str:
    body = {
        key: body[key] for key in ("model", "max_tokens", "messages")
    }  # it takes no others of ours; the answer is there
    if streamed:
        with client.messages.stream(**body) as stream:
            message = stream.get_final_message()
    else:
        message = client.messages.create(**body)
    return "".join(block.text for block in message.content if block.type == "text")


READERS = {"chat": _chat, "responses": _responses, "messages": _messages}
