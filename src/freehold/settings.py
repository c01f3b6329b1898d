"""Settings: frozen dataclasses, one per room, where every default lives once.

A value comes from, lowest first: the default here, the TOML file, `FREEHOLD_<FIELD>` in the environment, a flag.
`Settings.origins` remembers which. Flags, environment names and the reference in `docs/` are derived from the fields'
metadata. This module knows no room; rooms take the dataclass they need.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PREFIX = "FREEHOLD_"

ABILITIES = ("tools", "vision", "documents", "json")
"""What an upstream's model may be declared to be able to; whoever declares some has no others."""

PROVIDERS = ("openai", "anthropic", "azure", "deepseek", "groq", "gemini", "openrouter", "ollama")
"""Providers whose address, dialect and key variable are known."""

UPSTREAM_DIALECTS = ("openai", "anthropic", "azure")


def _setting(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    inherits: str = "",
) -> Any:
    """A field and what is said of it; `inherits` names the section that a value of None is taken from."""
    metadata = {"help": text, "choices": choices, "minimum": minimum, "maximum": maximum, "inherits": inherits}
    if isinstance(default, (list, dict)):
        raise TypeError("defaults are immutable")
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The local engine."""

    model: str = _setting("smollm2", "Model reference: built-in name, directory, .gguf file or org/repo[:variant].")
    threads: int = _setting(0, "Compute threads; 0 = what cgroup quota, affinity and physical cores allow.", minimum=0)
    isa: str = _setting(
        "auto",
        "Instruction set to use; auto picks the best this CPU has.",
        choices=("auto", "reference", "portable", "avx2", "avx512", "amx"),
    )
    kv_dtype: str = _setting("int8", "Number format of the KV cache.", choices=("int8", "f16", "f32"))
    kv_memory_mb: int = _setting(
        0, "Memory for the KV cache in MiB; 0 = a quarter of free memory, at most 4096.", minimum=0
    )
    packed_weights: str = _setting(
        "cache",
        "Weights in the kernels' layout: a file in the cache that is mapped, or memory of each process.",
        choices=("cache", "memory"),
    )
    max_context: int = _setting(0, "Longest sequence in tokens; 0 = what the model allows.", minimum=0)
    max_batch: int = _setting(64, "Sequences that run at the same time.", minimum=1)
    max_step_tokens: int = _setting(512, "Tokens processed in one scheduler step (prefill chunk size).", minimum=1)
    prefix_cache: bool = _setting(True, "Prompts that begin alike share the pages of the KV cache that are computed.")
    max_queue: int = _setting(1024, "Requests waiting before new ones are refused.", minimum=1)
    step_seconds: float = _setting(
        120.0, "Longest step: an engine that answers nothing for so long is started again; 0 = never.", minimum=0
    )
    stall_seconds: float = _setting(
        10.0, "The same for an engine that answers nothing and uses no CPU time, so that it hangs.", minimum=0
    )


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The HTTP server."""

    host: str = _setting("127.0.0.1", "Address to listen on.")
    port: int = _setting(7411, "Port to listen on; 0 picks a free one.", minimum=0, maximum=65535)
    api_key: str = _setting("", "Key that clients must send; empty = none asked (loopback only).")
    max_body_mb: float = _setting(8.0, "Largest request body in MiB.", minimum=0.001)
    client_seconds: float = _setting(
        30.0, "Longest wait for a client's headers, and for its body; 0 = for ever.", minimum=0
    )
    log_format: str = _setting("text", "Log lines for people, or as JSON objects.", choices=("text", "json"))


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """How long a backend may take before the next one is tried."""

    ttft_seconds: float = _setting(10.0, "Longest wait for the first token.", minimum=0)
    idle_seconds: float = _setting(15.0, "Longest silence inside a stream.", minimum=0)
    total_seconds: float = _setting(600.0, "Longest whole answer.", minimum=0)


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a backend that fails is left alone, and when it is tried again."""

    open_after: int = _setting(1, "Failures in a row after which a backend is left alone.", minimum=1)
    first_wait_seconds: float = _setting(
        2.0, "Wait before a failed backend gets one request again; doubles while it keeps failing.", minimum=0.01
    )
    longest_wait_seconds: float = _setting(32.0, "Longest such wait.", minimum=0.01)
    ping_seconds: float = _setting(
        2.0, "How often a failed upstream is asked, without any prompt, whether it is there; 0 = never.", minimum=0
    )
    quarantine_seconds: float = _setting(
        1800.0, "Between two requests to a backend that refused our account: banned, billing, region, key.", minimum=1
    )
    state_dir: str = _setting(
        "", "Where quarantines are remembered across restarts; empty = freehold in the user's state directory."
    )


@dataclass(frozen=True, slots=True)
class AlertSettings:
    """Who is told when a backend is quarantined, and when it is back."""

    webhook_url: str = _setting("", "Gets each alert as a JSON POST; empty = log and metric only.")
    webhook_seconds: float = _setting(5.0, "Longest wait for the webhook.", minimum=0.1)


@dataclass(frozen=True, slots=True)
class CostSettings:
    """What this machine costs, to price local answers by the seconds they took."""

    machine_usd_per_hour: float = _setting(
        0.0, "Price of one hour of this machine in USD; 0 = unknown, and local costs are not shown.", minimum=0
    )
    prices: str = _setting("", "TOML file with prices of your own, which go before the built-in ones.")
    compare_with: str = _setting("", "PROVIDER/MODEL whose prices `freehold cost` compares with.")


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """Where keys, budgets, usage and the state that survives a crash are kept."""

    url: str = _setting(
        "",
        "postgresql://HOST/NAME or sqlite:///FILE; empty = a SQLite file. Passwords: in the environment or ~/.pgpass.",
    )


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """How money and rates are kept within the limits of keys and backends."""

    unknown_price: str = _setting(
        "refuse",
        "What a request with a limit in USD may do at a backend whose price is unknown.",
        choices=("refuse", "allow"),
    )
    reserve_tokens: int = _setting(
        4096,
        "Tokens of output set aside for a request that names no maximum; what it really used is settled after.",
        minimum=1,
    )


@dataclass(frozen=True, slots=True)
class ResponsesSettings:
    """How many of the responses that clients may come back to (`/v1/responses`) are kept, and how long."""

    responses_per_key: int = _setting(
        10_000, "Responses kept for each key; the one unused for longest goes first. 0 = none.", minimum=0
    )
    responses_mb: float = _setting(64.0, "MiB that they may take for each key.", minimum=0)
    responses_days: float = _setting(
        30.0, "Days after its last use that a response is forgotten; 0 = never.", minimum=0
    )


@dataclass(frozen=True, slots=True)
class ProvenanceSettings:
    """What the ledger records, and who is told of its heads."""

    ledger: bool = _setting(True, "Write every exchange, pull and compression into the ledger.")
    keep_content: bool = _setting(
        False, "Keep the texts of prompts and answers beside their records; without, only salted hashes of them."
    )
    head_seconds: float = _setting(
        3600.0, "How often a head of the ledger is signed when something was added; 0 = only when asked.", minimum=0
    )
    publish_heads: str = _setting("", "File to which every signed head is appended, for others to keep; empty = none.")
    journal_dir: str = _setting(
        "", "Directory where answers are safe until the database has them; empty = `ledger` in the state directory."
    )


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Who answers when several could. A `[[route]]` may say otherwise for the models it names."""

    policy: str = _setting(
        "core",
        "Order of those who can answer: the core first, the cheapest, or the one measured fastest.",
        choices=("core", "cheapest", "fastest"),
    )
    max_waiting: int = _setting(
        0, "Requests in the engine's queue from which a standby is asked first; 0 = no limit.", minimum=0
    )
    max_wait_seconds: float = _setting(
        0.0, "Predicted wait in the engine's queue from which a standby is asked first; 0 = no limit.", minimum=0
    )
    max_kv_usage: float = _setting(
        0.0, "Share of the engine's KV cache in use from which a standby is asked first; 0 = no limit.", minimum=0
    )
    sticky: str = _setting(
        "none",
        "Keep to the backend that answered before, for its prefix cache: by the conversation's beginning, by the "
        "request's user, or by the header x-freehold-session.",
        choices=("none", "prefix", "user", "header"),
    )
    sticky_seconds: float = _setting(600.0, "How long after an answer a backend is kept to.", minimum=0)
    escalate_below: float = _setting(
        0.0,
        "Mean log-probability of the core's answer below which a standby is asked; 0 = never, -0.7 is a start.",
        maximum=0,
    )
    escalate_agreement: float = _setting(
        0.0,
        "Agreement of the core's answer with second answers of its own, from 0 to 1, below which a standby is asked; "
        "0 = never, 0.5 is a start.",
        minimum=0,
        maximum=1,
    )
    escalate_samples: int = _setting(2, "Second answers that it is compared with.", minimum=1, maximum=16)
    escalate_streams: bool = _setting(False, "Judge streamed answers too, which holds them until they are complete.")
    reload_seconds: float = _setting(
        2.0, "How often the settings file is looked at for changed routes; 0 = only on SIGHUP.", minimum=0
    )


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """One `[[route]]` table: how requests for some models are routed. What it leaves out, `[router]` says."""

    model: str = _setting("", "The model asked for; * and ? match any characters. The first route that matches counts.")
    to: tuple[str, ...] = _setting(
        (), "Backends in order: `local`, an upstream's name, or `upstream.model`; empty = the core, then the standbys."
    )
    router: RouterSettings = RouterSettings()


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """One closed (or any OpenAI-compatible) provider: a `[[upstream]]` table of the TOML file.

    The key is never in the file: `key_env` names an environment variable (or several, separated by commas: the next is
    used when one is refused), `key_file` a file with mode 0600.
    """

    name: str = _setting("", "What it is called in routes, headers and metrics; every upstream needs one of its own.")
    base_url: str = _setting(
        "", "Where it is, such as https://provider.example/v1; empty = where the provider is known to be."
    )
    model: str = _setting("", "Model to ask for; empty = only asked as NAME.MODEL, and no standby for others.")
    key_env: str = _setting(
        "", "Environment variable with its key, or several separated by commas; empty = the provider's usual one."
    )
    key_file: str = _setting("", "File with its key, mode 0600.")
    provider: str = _setting(
        "", "Whose address, dialect and key variable are filled in; empty = nobody known.", choices=PROVIDERS
    )
    dialect: str = _setting("", "What it speaks; empty = the provider's, else openai.", choices=UPSTREAM_DIALECTS)
    api_version: str = _setting("", "API version that completes Azure's URLs.")
    max_tokens: int = _setting(
        0, "Limit that Anthropic, who demands one, gets when the client gives none; 0 = 4096.", minimum=0
    )
    context: int = _setting(0, "Tokens that its model takes; 0 = not known.", minimum=0)
    abilities: tuple[str, ...] = _setting(
        (),
        "What its model can do: whoever declares some has no others; empty = the provider decides.",
        choices=ABILITIES,
    )
    usd_per_day: float = _setting(0.0, "Most that may be spent there in a day (UTC); 0 = no limit.", minimum=0)
    usd_per_month: float = _setting(0.0, "Most that may be spent there in a calendar month; 0 = no limit.", minimum=0)
    ttft_seconds: float | None = _setting(
        None, "Its own longest wait for the first token; 0 = for ever.", minimum=0, inherits="guards"
    )
    idle_seconds: float | None = _setting(
        None, "Its own longest silence inside a stream; 0 = for ever.", minimum=0, inherits="guards"
    )
    total_seconds: float | None = _setting(
        None, "Its own longest whole answer; 0 = for ever.", minimum=0, inherits="guards"
    )

    def guards(self, default: GuardSettings) -> GuardSettings:
        """Its time limits: its own where it has some, else the default's."""
        names = [item.name for item in dataclasses.fields(GuardSettings)]
        own = {name: value for name in names if (value := getattr(self, name)) is not None}
        return dataclasses.replace(default, **own)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything, with the origin of each value: "default", "file PATH", "env NAME" or "flag --name"."""

    engine: EngineSettings = EngineSettings()
    server: ServerSettings = ServerSettings()
    guards: GuardSettings = GuardSettings()
    breaker: BreakerSettings = BreakerSettings()
    alerts: AlertSettings = AlertSettings()
    cost: CostSettings = CostSettings()
    database: DatabaseSettings = DatabaseSettings()
    budget: BudgetSettings = BudgetSettings()
    responses: ResponsesSettings = ResponsesSettings()
    router: RouterSettings = RouterSettings()
    provenance: ProvenanceSettings = ProvenanceSettings()
    upstreams: tuple[UpstreamSettings, ...] = ()
    routes: tuple[RouteSettings, ...] = ()
    file: Path | None = field(default=None, compare=False)
    origins: Mapping[str, str] = field(default_factory=dict)


SECTIONS: Mapping[str, type[Any]] = {
    "engine": EngineSettings,
    "server": ServerSettings,
    "guards": GuardSettings,
    "breaker": BreakerSettings,
    "alerts": AlertSettings,
    "cost": CostSettings,
    "database": DatabaseSettings,
    "budget": BudgetSettings,
    "responses": ResponsesSettings,
    "router": RouterSettings,
    "provenance": ProvenanceSettings,
}


TABLES: Mapping[str, type[Any]] = {"upstream": UpstreamSettings, "route": RouteSettings}
"""What a file may have any number of."""


def own(item: dataclasses.Field[Any]) -> bool:
    """Whether a `[[route]]` may say a field of `[router]` otherwise."""
    return item.name != "reload_seconds"


def env_name(field_name: str) -> str:
    """The environment variable of a setting: `FREEHOLD_` and its name in capitals (FREEHOLD_DATABASE_URL for `url`)."""
    return PREFIX + ("database_url" if field_name == "url" else field_name).upper()
