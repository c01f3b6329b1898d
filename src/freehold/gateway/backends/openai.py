"""Any OpenAI-compatible upstream, and Azure's, as backends; see `upstream.py` for what they share with others."""

from __future__ import annotations

from freehold.errors import SettingError
from freehold.gateway.backends.embeddings import MAX_EMBEDDINGS, decode_embeddings, encode_embeddings
from freehold.gateway.backends.keys import Key
from freehold.gateway.backends.openai_wire import AzureWire, OpenAIWire
from freehold.gateway.backends.providers import known
from freehold.gateway.backends.upstream import UpstreamBackend
from freehold.gateway.conversation import EmbeddingRequest, Embeddings
from freehold.gateway.failures import CapabilityError
from freehold.settings import GuardSettings, UpstreamSettings


class OpenAIBackend(UpstreamBackend):
    """One provider that speaks OpenAI's API, or Azure's variant of it.

    Args:
        upstream: its settings.
        guards: `ttft_seconds` bounds connecting.
        key: when the caller has it already; else keys are read as the settings say.
    """

    def __init__(self, upstream: UpstreamSettings, guards: GuardSettings, *, key: Key | None = None) -> None:
        filled, provider = known(upstream)
        if filled.dialect == "azure":
            wire: OpenAIWire = AzureWire(filled.name, provider, _version(filled))
        else:
            wire = OpenAIWire(filled.name, provider)
        super().__init__(filled, guards, wire, None if key is None else (key,))
        self._addressed = wire

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Vectors of the inputs, in their order.

        Raises:
            CapabilityError: no model to ask for.
            UpstreamError: it refused, failed, or answered something else than was asked for.
        """
        if not request.model:
            raise CapabilityError(f"The upstream '{self.name}' has no model configured.", param="model")
        path = self._addressed.embeddings_path(request.model)
        answer = await self.whole(path, encode_embeddings(request), MAX_EMBEDDINGS)
        try:
            return decode_embeddings(answer, request)
        except ValueError as problem:
            raise self.error(f"embeddings that are not as documented ({problem})") from None


def _version(upstream: UpstreamSettings) -> str:
    version = upstream.api_version
    if not version.replace("-", "").isalnum() or not version.isascii():
        raise SettingError(f"[[upstream]] {upstream.name}: expected an api_version like 2024-10-21, found '{version}'")
    return version
