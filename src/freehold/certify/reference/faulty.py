"""What a fault is: a change to one step on the way from request to reply, by name, and what it must turn red.

Knows the steps, not the checks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from freehold.certify.reference.http import Incoming, Outgoing
from freehold.certify.reference.model import Prompt, Reply

Patch = Callable[..., None]
STEPS = ("body", "prompt", "answer", "reply", "portions")


@dataclass(frozen=True)
class Fault:
    """A departure from the specification that can be switched on.

    Args:
        name: says what the server does wrong.
        turns: id of the requirement that must find it.
        step: where it changes something; "" = nowhere (see leaks).
        patch: the change.
        collateral: other requirements that go red with it, and why they must.
        leaks: keeps the slot of a client that has left.
    """

    name: str
    turns: str
    step: str = ""
    patch: Patch | None = None
    collateral: dict[str, str] = field(default_factory=dict)
    leaks: bool = False

    def on_body(self, incoming: Incoming) -> None:
        """Before the body is read."""
        self._do("body", incoming)

    def on_prompt(self, incoming: Incoming, prompt: Prompt) -> None:
        """Before the model sees the prompt."""
        self._do("prompt", incoming, prompt)

    def on_answer(self, incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
        """After the model has written."""
        self._do("answer", incoming, prompt, reply)

    def on_reply(self, incoming: Incoming, reply: Outgoing) -> None:
        """Before the reply becomes bytes."""
        self._do("reply", incoming, reply)

    def on_portions(self, incoming: Incoming, reply: Outgoing) -> None:
        """Before the bytes are sent."""
        self._do("portions", incoming, reply)

    def _do(self, step: str, *given: Any) -> None:
        if step == self.step and self.patch is not None:
            self.patch(*given)


FAULTS: dict[str, Fault] = {}


def fault(name: str, turns: str, step: str, **collateral: str) -> Callable[[Patch], Patch]:
    """Registers a patch as a fault.

    Args:
        collateral: id (with `_` for `.`) = the reason why it goes red too.
    """

    def register(patch: Patch) -> Patch:
        assert name not in FAULTS and step in STEPS, name  # noqa: S101  (a programming error)
        others = {id.replace("_", "."): reason for id, reason in collateral.items()}
        FAULTS[name] = Fault(name, turns, step, patch, others)
        return patch

    return register
