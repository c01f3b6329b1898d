"""One request on its way: its tokens so far, how many are in the KV cache, and where. Knows no scheduler or model."""

from __future__ import annotations

from dataclasses import dataclass, field

from freehold.engine.embedding import Pool
from freehold.engine.request import GenerateRequest, Sampling
from freehold.engine.sampler import SamplerState


@dataclass(slots=True, eq=False)
class Sequence:
    """A request and its progress.

    Args:
        arrival: order of arrival; decides who is admitted first and who is preempted last.
        limit: most tokens of prompt and output together.
        tokens: prompt, then output.
        computed: how many of `tokens` have their keys and values in `pages`.
        served: number of the last step that worked on it.
        cached: tokens of the prompt that other requests had computed before.
        pool: gathers hidden states, for a request that wants these and no tokens.
    """

    request: GenerateRequest
    arrival: int
    limit: int
    sampler: SamplerState
    tokens: list[int] = field(init=False)
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    served: int = -1
    cached: int = 0
    pool: Pool | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)
        if self.request.pooling is not None:
            self.pool = Pool(self.request.pooling)

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def sampling(self) -> Sampling:
        """How its tokens are chosen."""
        return self.request.sampling

    @property
    def pending(self) -> int:
        """Tokens that still have to go through the model; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.request.prompt)

    def append(self, token: int) -> str | None:
        """Take the next token; says why the sequence is finished, or None."""
        self.tokens.append(token)
        self.sampler.note(token)
        if token in self.sampling.stop_ids:
            return "stop"
        return "length" if len(self.tokens) >= self.limit else None
