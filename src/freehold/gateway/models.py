"""The list of models in OpenAI's and in Anthropic's shape. Knows names and owners only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from freehold.gateway.shelf import page_size

MOST_MODELS = 1000
DEFAULT_MODELS = 20  # Anthropic's

Known = Sequence[tuple[str, str]]


def openai_card(name: str, owner: str, created: int) -> dict[str, Any]:
    """One model (https://platform.openai.com/docs/api-reference/models/object)."""
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


def openai_list(known: Known, created: int) -> dict[str, Any]:
    """All models."""
    return {"object": "list", "data": [openai_card(name, owner, created) for name, owner in known]}


def anthropic_card(name: str, created: int) -> dict[str, Any]:
    """One model (https://platform.claude.com/docs/en/api/models)."""
    shown = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": name, "display_name": name, "created_at": shown, "lifecycle": "active"}


def anthropic_list(known: Known, created: int, query: Mapping[str, str]) -> dict[str, Any]:
    """A page of models: `limit`, `after_id` or `before_id`.

    Raises:
        RequestError: a limit that is none.
    """
    limit = page_size(query.get("limit"), DEFAULT_MODELS, MOST_MODELS)
    names = [name for name, _ in known]
    begin, end = 0, len(names)
    if (after := query.get("after_id")) in names:
        begin = names.index(after) + 1
    if (before := query.get("before_id")) in names:
        end = names.index(before)
        begin = max(begin, end - limit)
    page = names[begin : min(begin + limit, end)]
    more = begin > 0 if before in names else begin + len(page) < end
    return {
        "data": [anthropic_card(name, created) for name in page],
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
        "has_more": more,
    }
