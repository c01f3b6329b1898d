"""A dry run of routing: who would be asked, in which order and why, and who would not. Nothing is sent or started.

What only a running server knows (speeds, queues, conversations, rates) is not part of it; quarantines are, because they
are remembered on disk. Knows dialects and the router.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from freehold.errors import FreeholdError
from freehold.gateway.conversation import Request
from freehold.gateway.dialects import Dialect, anthropic_messages, openai_chat, openai_completions
from freehold.gateway.failures import RequestError
from freehold.gateway.router import Router

DIALECTS: dict[str, Dialect] = {
    "chat": openai_chat.DIALECT,
    "completions": openai_completions.DIALECT,
    "messages": anthropic_messages.DIALECT,
}


def explain(router: Router, body: bytes, dialect: str = "chat", *, session: str = "") -> dict[str, Any]:
    """The decision for a request body.

    Args:
        dialect: a name of `DIALECTS`.
        session: what the client would send as x-freehold-session.

    Raises:
        RequestError: the body is not one of the dialect's.
    """
    request, _ = DIALECTS[dialect].decode(body, "dry-run")
    decision = router.decide(replace(request, session=session))
    core = router.core
    return {
        "model": request.model,
        "route": decision.route.model or None,
        "policy": decision.route.router.policy,
        "prompt_tokens": decision.prompt_tokens,
        "line": [
            {
                "backend": candidate.backend.name,
                "model": core.model if core and candidate.backend.name == core.name else candidate.request.model,
                "reason": candidate.reason,
                "dropped": list(candidate.dropped),
            }
            for candidate in decision.line
        ],
        "not_asked": [{"backend": name, "reason": error.message} for name, error in decision.refusals]
        + [{"backend": name, "reason": verdict.reason} for name, verdict in decision.left_alone],
        "error": _error(router, request),
    }


def _error(router: Router, request: Request) -> str | None:
    """What the client would be told when nobody is in line."""
    try:
        router.plan(request)
    except RequestError as error:
        return f"{error.message} Hint: {error.hint}" if error.hint else error.message
    except FreeholdError as error:
        return error.message
    return None
