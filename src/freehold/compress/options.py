"""What can be chosen about a compression. Knows no files and no tensors."""

from __future__ import annotations

from dataclasses import dataclass

from freehold.errors import UsageError

GROUP_SIZES = (32, 64, 128)
WIDTHS = (3, 4, 5, 6, 8)
ANY = 0
"""`embedding_bits` that leaves the choice to the budget."""
KEEP = 16
"""`embedding_bits` that leaves embeddings and output layer in 16 bits."""


@dataclass(frozen=True, slots=True)
class CompressOptions:
    """How to compress.

    Args:
        bits: 4 or 8, of the linear layers.
        group_size: weights that share a scale: 32, 64 or 128; a smaller one is taken where it does not divide a layer.
        symmetric: True stores scales only. False adds a zero point per group, 0.125 bits per weight: the relative error
            of SmolLM2-135M falls from 0.072 to 0.066, its KL divergence from 0.246 to 0.206. Not the default, because
            compressed-tensors 0.20 fails to load packed zero points into transformers.
        kv_bits: 8 or 4, of the key and value projections where query heads share them (they are small then): 8 takes
            SmolLM2-135M's KL divergence from 0.246 to 0.168 for 1.2% of its bf16 size; with values alone it is 0.185.
            vLLM wants one width for query, key and value: it needs 4 here.
        budget: bits for each weight of the whole model, embeddings, scales and norms included: what each layer gets is
            then measured (needs statistics), and `bits`, `group_size`, `kv_bits` and `embedding_bits` don't count.
        uniform: a format, "int4 g32", that every linear layer and embedding gets instead.
        stretch: raise a budget that is too small to SPARE bits above the smallest formats of 4 bits or more.
        embedding_bits: 8, or 16 to leave embeddings and output layer alone (vLLM reads no int8 embeddings). With a
            budget: of the embedding; 4 and ANY too, which for an embedding shared with the output layer gives what
            transformers can't load (Freehold, and llama.cpp as GGUF, can).
        widths: bits that a plan may use. The kernels have 4 and 8: 3 bits are kept as 4 in memory, 5 and 6 as 8.
        fused: one format for all tensors that read one input (query, key and value; gate and up), as vLLM wants.
        overwrite: replace an earlier result of ours at the destination.
        threads: threads that search scales; 0 = as many as this process may use, at most 8.

    Raises:
        UsageError: a value that is none of these.
    """

    bits: int = 4
    group_size: int = 32
    symmetric: bool = True
    kv_bits: int = 8
    embedding_bits: int = 8
    budget: float | None = None
    uniform: str | None = None
    stretch: bool = False
    widths: tuple[int, ...] = WIDTHS
    fused: bool = False
    overwrite: bool = False
    threads: int = 0

    def __post_init__(self) -> None:
        _one_of("bits", self.bits, (4, 8))
        _one_of("group size", self.group_size, GROUP_SIZES)
        _one_of("bits of key and value projections", self.kv_bits, (4, 8))
        planned = self.budget is not None or self.uniform is not None
        _one_of("bits of the embedding", self.embedding_bits, (ANY, *WIDTHS, KEEP) if planned else (8, KEEP))
        if self.budget is not None and not 4 <= self.budget <= 16:
            raise UsageError(f"expected a budget of 4 to 16 bits a weight, found {self.budget:g}")
        if not self.widths or not set(self.widths) <= set(WIDTHS):
            raise UsageError(
                f"expected widths out of {', '.join(map(str, WIDTHS))}, found {', '.join(map(str, self.widths)) or 'none'}"
            )
        if self.threads < 0:
            raise UsageError(f"expected threads to be 0 or more, found {self.threads}")

    def fingerprint(self) -> dict[str, int | bool | float | str | None]:
        """The choices that change the result."""
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "symmetric": self.symmetric,
            "kv_bits": self.kv_bits,
            "embedding_bits": self.embedding_bits,
            "budget": self.budget,
            "uniform": self.uniform,
            "stretch": self.stretch,
            "widths": ",".join(map(str, self.widths)),
            "fused": self.fused,
        }


def _one_of(name: str, value: int, choices: tuple[int, ...]) -> None:
    if value not in choices:
        raise UsageError(f"expected {name} to be one of {', '.join(map(str, choices))}, found {value}")
