"""Which backend the settings of an upstream mean."""

from __future__ import annotations

from freehold.gateway.backends.anthropic import AnthropicBackend
from freehold.gateway.backends.keys import Key
from freehold.gateway.backends.openai import OpenAIBackend
from freehold.gateway.backends.providers import known
from freehold.gateway.backends.upstream import UpstreamBackend
from freehold.settings import GuardSettings, UpstreamSettings


def upstream_backend(upstream: UpstreamSettings, guards: GuardSettings, *, key: Key | None = None) -> UpstreamBackend:
    """The backend for an upstream, by the dialect that it speaks.

    Args:
        guards: time limits that hold where the upstream has none of its own.
        key: used in place of those that the settings name.

    Raises:
        SettingError: the settings are incomplete, or a key is missing.
    """
    filled, _ = known(upstream)
    own = filled.guards(guards)
    backend = (AnthropicBackend if filled.dialect == "anthropic" else OpenAIBackend)(filled, own, key=key)
    backend.guards = own
    return backend
