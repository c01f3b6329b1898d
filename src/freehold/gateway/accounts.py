"""What the gateway does about money and rates for each request: before it is sent, and when it has ended.

Joins the budget to the router and to what the taps have measured. Knows no SQL, no price and no HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from freehold.cost.meter import Part
from freehold.cost.prices import Tokens
from freehold.gateway.budget import Budget, Hold, Offer
from freehold.gateway.conversation import EmbeddingRequest, Embeddings, Request
from freehold.gateway.ranking import Candidate
from freehold.gateway.relay import Relay
from freehold.gateway.router import Router
from freehold.gateway.tap import Taps, prompt_tokens


class Accounts:
    """A budget at work.

    Args:
        budget: opened by `start`.
        router: plans; is told prices.
        relay: its streams are measured.
    """

    def __init__(self, budget: Budget, router: Router, relay: Relay) -> None:
        self.budget = budget
        self._router = router
        self.taps = Taps(None if router.core is None else router.core.name)
        router.prices = budget.usd
        relay.context.stream = self.taps.stream

    async def begin(self, request: Request) -> tuple[Request, Hold]:
        """Reserves for a request; gives it back with the backends that can be paid.

        Raises:
            RequestError: the key may not ask for that.
            LimitError: its rate or money is used up.
            FreeholdError: nobody knows the model, or the database can't be asked.
        """
        hold = Hold(request.id, request.key_id)
        if self.budget.limited(request.key_id, [backend.name for backend in self._router.backends]):
            prompt = prompt_tokens(request)
            output = (request.max_tokens or self.budget.settings.reserve_tokens) * request.choices
            line = self._router.plan(request)
            offers = self._offers(line, prompt, output)
            hold = await self.budget.reserve(request.key_id, request.model, offers, prompt + output)
        self.taps.begin(request.id)
        return request if hold.backends is None else replace(request, backends=frozenset(hold.backends)), hold

    def end(self, hold: Hold, request_id: str) -> None:
        """Settles what its backends did."""
        self.budget.settle(hold, request_id, self.taps.end(request_id))

    async def begin_embedding(self, request: EmbeddingRequest) -> Hold:
        """As `begin`; only the backend whose model was asked for can answer."""
        asked = Request(id=request.id, model=request.model, prompts=request.inputs, key_id=request.key_id)
        if not self.budget.limited(request.key_id, [backend.name for backend in self._router.backends]):
            return Hold(request.id, request.key_id)
        prompt = prompt_tokens(asked)
        offers = self._offers(self._router.plan(replace(asked, prompts=("",)))[:1], prompt, 0)
        return await self.budget.reserve(request.key_id, request.model, offers, prompt)

    def end_embedding(
        self, hold: Hold, request: EmbeddingRequest, backend: str, found: Embeddings, seconds: float
    ) -> Part:
        """Settles vectors that were made, and says what their backend did."""
        local = self._router.core is not None and backend == self._router.core.name
        part = Part(
            backend, found.model, datetime.now(UTC), local=local, heard=True,
            tokens=Tokens(prompt=found.prompt_tokens), seconds=seconds, finished=True,
        )  # fmt: skip
        self.budget.settle(hold, request.id, [part])
        return part

    def _offers(self, line: Sequence[Candidate], prompt: int, output: int) -> list[Offer]:
        return [self.budget.offer(c.backend.name, c.request.model, prompt, output) for c in line]
