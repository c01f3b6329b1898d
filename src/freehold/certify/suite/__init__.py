"""The suite: for each group of requirements the scenarios that ask and the checks that judge.

Importing it registers them all.
"""

from freehold.certify.suite import (
    chat,
    cross,
    differential,
    errors,
    messages,
    responses,
    structured,
    tools,
    transport,
    usage,
)

__all__ = [
    "chat",
    "cross",
    "differential",
    "errors",
    "messages",
    "responses",
    "structured",
    "tools",
    "transport",
    "usage",
]
