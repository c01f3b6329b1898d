"""The gateway: one request, many backends; the local engine is the core, closed providers are its standby.

    app -> dialect.decode -> router.plan -> backend.stream -> relay (guards, failover) -> dialect.encode -> client

Public face: `Gateway` (the pipeline without HTTP), `create_app` (the ASGI application), `serve` (the whole server).
They are loaded on first use, so that asking a model in process never imports the web server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freehold.gateway.app import create_app
    from freehold.gateway.router import Router
    from freehold.gateway.server import serve
    from freehold.gateway.service import Gateway

__all__ = ["Gateway", "Router", "create_app", "serve"]

_HOME = {"Gateway": "service", "Router": "router", "create_app": "app", "serve": "server"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
