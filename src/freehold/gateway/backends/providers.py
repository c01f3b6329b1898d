"""What is documented of well-known providers, so that settings may say `provider = "deepseek"` and little else.

Addresses and key variables: https://platform.openai.com/docs/api-reference, https://docs.anthropic.com/en/api/overview,
https://learn.microsoft.com/azure/ai-services/openai/reference, https://api-docs.deepseek.com,
https://console.groq.com/docs/openai, https://ai.google.dev/gemini-api/docs/openai, https://openrouter.ai/docs/quickstart,
https://docs.ollama.com/openai. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from freehold.errors import SettingError
from freehold.settings import UpstreamSettings


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider's habits. The defaults are those of a server we know nothing about.

    Args:
        base_url: what `base_url` is when the settings leave it out; empty = they must not.
        dialect: what it speaks.
        key_env: the variable its documentation names; empty = needs no key.
        limit_field: how its chat calls the limit. OpenAI's reasoning models refuse `max_tokens`; most others know only
            that, and would ignore the newer name.
        extensions: whether it takes `top_k`, `min_p` and `repetition_penalty` beside OpenAI's parameters, as vLLM,
            llama-server and OpenRouter do; others refuse a request that has them.
        thinking: whether earlier thinking is given back as `reasoning_content`: DeepSeek refuses a tool loop without
            (https://api-docs.deepseek.com/guides/thinking_mode).
    """

    base_url: str = ""
    dialect: str = "openai"
    key_env: str = ""
    limit_field: str = "max_tokens"
    extensions: bool = True
    thinking: bool = False


OPENAI = Provider("https://api.openai.com/v1", "openai", "OPENAI_API_KEY", "max_completion_tokens", extensions=False)
ANTHROPIC = Provider("https://api.anthropic.com/v1", "anthropic", "ANTHROPIC_API_KEY")
AZURE = Provider("", "azure", "AZURE_OPENAI_API_KEY", "max_completion_tokens", extensions=False)

PROVIDERS: Mapping[str, Provider] = {
    "openai": OPENAI,
    "anthropic": ANTHROPIC,
    "azure": AZURE,
    "deepseek": Provider("https://api.deepseek.com", "openai", "DEEPSEEK_API_KEY", extensions=False, thinking=True),
    "groq": Provider("https://api.groq.com/openai/v1", "openai", "GROQ_API_KEY", extensions=False),
    "gemini": Provider(
        "https://generativelanguage.googleapis.com/v1beta/openai", "openai", "GEMINI_API_KEY", extensions=False
    ),
    "openrouter": Provider("https://openrouter.ai/api/v1", "openai", "OPENROUTER_API_KEY"),
    "ollama": Provider("http://127.0.0.1:11434/v1", "openai"),
}


def known(upstream: UpstreamSettings) -> tuple[UpstreamSettings, Provider]:
    """The settings with what they leave out, and the provider's habits.

    Raises:
        SettingError: an unknown provider, or Azure without its address or API version.
    """
    where = f"[[upstream]] {upstream.name}"
    if upstream.provider and upstream.provider not in PROVIDERS:
        raise SettingError(f"{where}: expected a provider among {', '.join(PROVIDERS)}, found '{upstream.provider}'")
    try:
        provider = PROVIDERS[upstream.provider] if upstream.provider else _by_address(upstream)
    except ValueError:
        raise SettingError(f"base_url of {where}: expected http(s)://host/path, found something else") from None
    filled = replace(
        upstream,
        base_url=upstream.base_url or provider.base_url,
        dialect=upstream.dialect or provider.dialect,
        key_env=upstream.key_env
        if upstream.provider == "" or upstream.key_file
        else upstream.key_env or provider.key_env,
    )
    if filled.dialect == "azure" and not (filled.base_url and filled.api_version):
        hint = 'base_url = "https://NAME.openai.azure.com", api_version = "2024-10-21"'
        raise SettingError(f"{where}: expected base_url and api_version for Azure", hint=hint)
    return filled, provider


def _by_address(upstream: UpstreamSettings) -> Provider:
    """The habits of whoever lives at the address; what the settings say about dialect and key holds all the same."""
    host = urlsplit(upstream.base_url).hostname or ""
    if upstream.dialect == "azure":
        return AZURE
    if host.endswith((".openai.com", ".openai.azure.com")):
        return OPENAI
    if upstream.dialect == "anthropic":
        return ANTHROPIC
    return next((p for p in PROVIDERS.values() if p.base_url and urlsplit(p.base_url).hostname == host), Provider())
