"""Every name that our traces use, and where it comes from; the conventions for GenAI still move, so they move here only.

GenAI: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/, HTTP:
https://opentelemetry.io/docs/specs/semconv/http/http-spans/; a test holds them against the package of the conventions.
What these have no name for begins with `freehold.`. There is none for prompts, answers, tools or stop strings: spans carry
no content.
"""

from __future__ import annotations

from collections.abc import Mapping

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
CONVERSATION = "gen_ai.conversation.id"
OUTPUT_TYPE = "gen_ai.output.type"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_STREAM = "gen_ai.request.stream"
MAX_TOKENS = "gen_ai.request.max_tokens"
CHOICES = "gen_ai.request.choice.count"
SAMPLING = "gen_ai.request."  # and temperature, top_p, top_k, frequency_penalty, presence_penalty, seed
DIMENSIONS = "gen_ai.embeddings.dimension.count"
RESPONSE_MODEL = "gen_ai.response.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS = "gen_ai.usage.cache_creation.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"

CHAT, COMPLETION, EMBEDDINGS = "chat", "text_completion", "embeddings"

SAMPLED = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed")

ERROR = "error.type"
METHOD = "http.request.method"
ROUTE = "http.route"
STATUS = "http.response.status_code"
PATH = "url.path"
SCHEME = "url.scheme"

REQUEST_ID = "freehold.request.id"
KEY_ID = "freehold.key.id"
BACKEND = "freehold.backend"
REASON = "freehold.reason"
DROPPED = "freehold.dropped"
CONTINUED_BY = "freehold.continued_by"
CONTINUES = "freehold.continues"

PROVIDERS: Mapping[str, str] = {
    "openai": "openai",
    "anthropic": "anthropic",
    "azure": "azure.ai.openai",
    "deepseek": "deepseek",
    "groq": "groq",
    "gemini": "gcp.gemini",
}
"""Our names of providers to the conventions' well-known ones; others keep theirs."""

OURS = "freehold"
"""The provider of the local engine's answers."""
