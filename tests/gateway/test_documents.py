"""PDFs and other documents: to upstreams that read them, in their own words; refused where nobody can."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tests.gateway import fakes
from tests.gateway.fakes import provider, recorded, response

from freehold.gateway.backends.anthropic import AnthropicBackend
from freehold.gateway.backends.openai import OpenAIBackend
from freehold.gateway.conversation import FilePart, ImagePart, Part, Request, TextPart, Turn
from freehold.gateway.dialects import anthropic_messages, openai_chat, openai_responses
from freehold.gateway.dialects.openai_responses import Memory
from freehold.gateway.failures import CapabilityError, RequestError
from freehold.gateway.ranking import missing_ability
from freehold.gateway.service import Gateway
from freehold.gateway.tap import PAGE_TOKENS, prompt_tokens
from freehold.settings import GuardSettings, UpstreamSettings

PDF = base64.b64encode(b"%PDF-1.7 nothing").decode()
DATA = f"data:application/pdf;base64,{PDF}"
ANTHROPIC_PDF = {"type": "base64", "media_type": "application/pdf", "data": PDF}
MEMORY = Memory(lambda id: [], lambda id: None, lambda kept: None)


def chat(part: dict[str, Any]) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "read"}, part]}]}
    return openai_chat.decode(json.dumps(body).encode(), "r")[0]


def responses(part: dict[str, Any]) -> Request:
    body = {"model": "m", "input": [{"role": "user", "content": [{"type": "input_text", "text": "read"}, part]}]}
    return openai_responses.decode(MEMORY, json.dumps(body).encode(), "r")[0]


def messages(source: dict[str, Any], **about: Any) -> Request:
    block = {"type": "document", "source": source} | about
    content = [{"type": "text", "text": "read"}, block]
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
    return anthropic_messages.decode(json.dumps(body).encode(), "r")[0]


def sent(backend: OpenAIBackend | AnthropicBackend, request: Request) -> list[dict[str, Any]]:
    """The content of the first message as the upstream gets it."""
    backend.check(request)
    found: list[dict[str, Any]] = json.loads(backend.wire.body(request))["messages"][0]["content"]
    return found


@pytest.fixture
def gpt() -> OpenAIBackend:
    settings = UpstreamSettings(name="gpt", base_url="https://api.openai.com/v1", model="m")
    return OpenAIBackend(settings, GuardSettings())


@pytest.fixture
def claude() -> AnthropicBackend:
    settings = UpstreamSettings(name="claude", base_url="https://api.anthropic.com/v1", model="m", dialect="anthropic")
    return AnthropicBackend(settings, GuardSettings())


@pytest.mark.parametrize(
    ("request_", "part"),
    [
        (chat({"type": "file", "file": {"filename": "a.pdf", "file_data": DATA}}), FilePart(DATA, "a.pdf")),
        (chat({"type": "file", "file": {"file_id": "file-1"}}), FilePart("", None, "file-1")),
        (responses({"type": "input_file", "filename": "a.pdf", "file_data": DATA}), FilePart(DATA, "a.pdf")),
        (responses({"type": "input_file", "file_url": "https://x.org/a.pdf"}), FilePart("https://x.org/a.pdf")),
        (messages(ANTHROPIC_PDF, title="a.pdf", context="old"), FilePart(DATA, "a.pdf", context="old")),
        (messages({"type": "url", "url": "https://x.org/a.pdf"}), FilePart("https://x.org/a.pdf")),
        (messages({"type": "text", "media_type": "text/plain", "data": "T"}, title="a"), TextPart("a\nT")),
        (messages({"type": "content", "content": "T"}, title="a"), TextPart("a\nT")),
    ],
)
def test_every_dialect_has_documents(request_: Request, part: Part) -> None:
    assert request_.turns[0].parts == (TextPart("read"), part) and request_.dropped == ()


def test_a_document_in_pieces_is_its_pieces() -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://x.org/a.png"}}
    found = messages({"type": "content", "content": [{"type": "text", "text": "T"}, image]}, title="a")
    assert found.turns[0].parts[1:] == (TextPart("a"), TextPart("T"), ImagePart("https://x.org/a.png"))


def test_a_pdf_reaches_openai_as_a_file_and_anthropic_as_a_document(
    gpt: OpenAIBackend, claude: AnthropicBackend
) -> None:
    from_claude = messages(ANTHROPIC_PDF, title="a.pdf", context="old", citations={"enabled": True})
    assert sent(gpt, from_claude)[1] == {"type": "file", "file": {"filename": "a.pdf", "file_data": DATA}}
    assert set(gpt.dropped(from_claude)) == {"messages[].content[].citations", "document.context"}
    asked = responses({"type": "input_file", "filename": "a.pdf", "file_data": DATA})
    assert sent(gpt, asked)[1] == {"type": "file", "file": {"filename": "a.pdf", "file_data": DATA}}
    from_gpt = chat({"type": "file", "file": {"filename": "a.pdf", "file_data": DATA}})
    assert sent(claude, from_gpt)[1] == {"type": "document", "source": ANTHROPIC_PDF, "title": "a.pdf"}
    from_url = responses({"type": "input_file", "file_url": "https://x.org/a.pdf"})
    assert sent(claude, from_url)[1]["source"] == {"type": "url", "url": "https://x.org/a.pdf"}
    assert claude.dropped(from_gpt) == claude.dropped(from_url) == ()


def test_the_clients_own_body_is_relayed_with_its_documents_as_they_are(
    gpt: OpenAIBackend, claude: AnthropicBackend
) -> None:
    own = messages(ANTHROPIC_PDF, title="a.pdf", citations={"enabled": True}, cache_control={"type": "ephemeral"})
    block = sent(claude, own)[1]
    assert block["citations"] == {"enabled": True} and block["cache_control"] and claude.dropped(own) == ()
    by_id = chat({"type": "file", "file": {"file_id": "file-1"}})
    assert sent(gpt, by_id)[1] == {"type": "file", "file": {"file_id": "file-1"}} and gpt.dropped(by_id) == ()


def test_a_text_in_base64_is_read_out_for_anthropic(claude: AnthropicBackend) -> None:
    data = "data:text/markdown;base64," + base64.b64encode("# Grüße".encode()).decode()
    found = sent(claude, chat({"type": "file", "file": {"filename": "a.md", "file_data": data}}))[1]
    assert found["source"] == {"type": "text", "media_type": "text/plain", "data": "# Grüße"}


def test_a_document_that_a_tool_returned_follows_in_a_users_message(
    gpt: OpenAIBackend, claude: AnthropicBackend
) -> None:
    turns = (
        Turn("user", (TextPart("go"),)),
        Turn("tool", (TextPart("here"), FilePart(DATA, "a.pdf")), tool_call_id="c1"),
    )
    request = Request(id="r", model="m", turns=turns, max_tokens=9)
    told = json.loads(gpt.wire.body(request))["messages"]
    assert [message["role"] for message in told] == ["user", "tool", "user"]
    assert told[1]["content"] == "here" and told[2]["content"][0]["type"] == "file"
    (message,) = json.loads(claude.wire.body(request))["messages"]
    assert message["content"][1]["content"][1]["type"] == "document"


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (chat({"type": "file", "file": {"file_id": "file-1"}}), "file_id"),
        (messages({"type": "file", "file_id": "file_1"}), "file_id"),
        (chat({"type": "file", "file": {"file_data": "JVBERi0="}}), "file_data"),
        (chat({"type": "file", "file": {"file_data": "data:application/msword;base64,AAAA"}}), "file_data"),
        (chat({"type": "file", "file": {"file_data": "data:text/plain;base64,/w=="}}), "file_data"),
    ],
)
def test_what_anthropic_can_not_take_is_refused_by_name(
    claude: AnthropicBackend, request_: Request, param: str
) -> None:
    with pytest.raises(CapabilityError) as caught:
        claude.check(request_)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("source", "param"),
    [({"type": "url", "url": "https://x.org/a.pdf"}, "file_url"), ({"type": "file", "file_id": "f"}, "file_id")],
)
def test_what_openai_can_not_take_is_refused_by_name(gpt: OpenAIBackend, source: dict[str, str], param: str) -> None:
    with pytest.raises(CapabilityError) as caught:
        gpt.check(messages(source))
    assert caught.value.param == param


@pytest.mark.parametrize("file", [None, {}, {"filename": "a.pdf"}])
def test_a_file_without_anything_in_it_is_wrong(file: dict[str, Any] | None) -> None:
    with pytest.raises(RequestError) as caught:
        chat({"type": "file"} | ({} if file is None else {"file": file}))
    assert caught.value.param == "messages[0].content[1].file"
    with pytest.raises(RequestError) as caught:
        responses({"type": "input_file"})
    assert caught.value.param == "input[0].content[1].file_data"


def test_the_local_engine_leaves_documents_to_those_who_can_read_them(directory: Path) -> None:
    request = chat({"type": "file", "file": {"filename": "a.pdf", "file_data": DATA}})
    core = fakes.core(directory)
    with pytest.raises(CapabilityError, match="documents") as caught:
        core.check(request)
    assert caught.value.param == "messages[0].content[1]"
    with provider([response(recorded("openai_chat_stream.txt"))]) as found:
        import httpx2

        with fakes.live(Gateway(core, [fakes.upstream(found.url)])) as live:
            answer = httpx2.post(live.url + "/v1/chat/completions", content=request.body.replace(b'"m"', b'"tiny"', 1))
        assert answer.status_code == 200 and answer.headers["x-freehold-backend"] == "openai"
        assert DATA.encode() in found.requests[0][1]


def test_an_upstream_declared_without_documents_is_not_asked_and_they_are_counted_before_they_are_paid() -> None:
    request = chat({"type": "file", "file": {"file_data": DATA}})
    facts = UpstreamSettings(name="blind", abilities=("tools", "vision"))
    assert missing_ability(request, facts) == "documents"
    assert missing_ability(request, UpstreamSettings(name="reader", abilities=("documents",))) is None
    assert prompt_tokens(request) >= PAGE_TOKENS
