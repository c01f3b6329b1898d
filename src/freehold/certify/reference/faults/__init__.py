"""The faults, by the group of requirements that must find them. Importing it registers them all."""

from freehold.certify.reference.faults import (
    chat,
    differential,
    messages,
    responses,
    structured,
    tools,
    transport,
    usage,
)

__all__ = ["chat", "differential", "messages", "responses", "structured", "tools", "transport", "usage"]
