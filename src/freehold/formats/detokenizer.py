"""From tokens' bytes to text, one token at a time, never showing half a character.

It knows bytes and UTF-8 only; which bytes a token stands for is the tokenizer's business.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable


class Detokenizer:
    """Incremental decoding: the pieces returned by `push` and `flush`, joined, are what decoding the whole gives.

    Bytes that can't be UTF-8 become U+FFFD, one for each maximal subpart (Unicode 15, section 3.9).

    Args:
        token_bytes: the bytes of a token id (empty for those not shown).
        drop_space: drop one space at the very beginning (SentencePiece writes one before the first word).
    """

    def __init__(self, token_bytes: Callable[[int], bytes], *, drop_space: bool = False) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = drop_space

    def push(self, token: int) -> str:
        """The characters completed by this token; "" while a character is incomplete."""
        return self._shown(self._decoder.decode(self._token_bytes(token)))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, otherwise ""."""
        return self._shown(self._decoder.decode(b"", final=True))

    @property
    def whole(self) -> bool:
        """Whether no character is incomplete."""
        return not self._decoder.getstate()[0]

    def _shown(self, text: str) -> str:
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text
