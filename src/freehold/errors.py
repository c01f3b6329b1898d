"""The error tree. Every error a user can cause or meet is one of these, and carries a hint where one helps.

    FreeholdError                    exit code 3
    ├── UsageError                   exit code 2: the command or a setting is wrong
    │   └── SettingError             a value in a file, the environment or a flag
    ├── FormatError                  a file is not what it should be (truncated, wrong magic, absurd sizes)
    │   ├── TokenizerError           no usable tokenizer, or a broken one
    │   └── TemplateError            a chat template that is missing, fails, or reaches outside its sandbox
    ├── UnsupportedError             a file is well formed, but we can't run it (architecture, tensor type, operation)
    ├── StoreError                   a model reference can't be resolved, fetched or verified
    │   └── ModelNotFoundError       no such model here or at the hub
    ├── EngineError                  the engine can't serve a request
    │   ├── ContextLengthError       prompt (plus requested output) is longer than the model's context
    │   ├── OverloadedError          queue or KV cache is full
    │   └── EngineDownError          the engine process died or has not started
    ├── LedgerError                  the ledger, a head or a pack does not hold what it should
    ├── DatabaseError                the database can't be reached, is of a newer version, or refused
    └── UpstreamError                a provider refused, failed or fell silent

This module knows nothing of HTTP, terminals or files: `gateway` turns errors into envelopes, `cli` into words and exit codes.
"""

from __future__ import annotations


class FreeholdError(Exception):
    """Anything Freehold reports on purpose.

    Args:
        message: what was expected, what was found, and where, in one sentence.
        hint: what the user can do next; shown on a `hint:` line of its own.
    """

    exit_code = 3

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(FreeholdError):
    """The command line or the call is wrong."""

    exit_code = 2


class SettingError(UsageError):
    """A setting has a bad value; the message names the setting, the value and where it came from."""


class FormatError(FreeholdError):
    """A file is not what it claims to be."""


class TokenizerError(FormatError):
    """A tokenizer is missing or broken."""


class TemplateError(FormatError):
    """A chat template is missing, fails, or reaches outside its sandbox."""


class UnsupportedError(FreeholdError):
    """A well-formed model that this version can't run."""


class StoreError(FreeholdError):
    """A model reference can't be resolved, fetched or verified."""


class ModelNotFoundError(StoreError):
    """No model of that name, here or at the hub."""


class EngineError(FreeholdError):
    """The engine can't serve this request."""


class ContextLengthError(EngineError):
    """The prompt does not fit the model's context.

    Args:
        limit: the model's context, in tokens.
        requested: tokens of the prompt plus those asked for.
    """

    def __init__(self, message: str, *, limit: int, requested: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.limit = limit
        self.requested = requested


class OverloadedError(EngineError):
    """The queue or the KV cache is full; try again later."""


class EngineDownError(EngineError):
    """The engine process is not running."""


class LedgerError(FreeholdError):
    """The ledger, a signed head or a pack does not hold what it should."""


class DatabaseError(FreeholdError):
    """The database can't be reached, was written by a newer version, or refused."""


class UpstreamError(FreeholdError):
    """A provider refused, failed or fell silent.

    Args:
        kind: the class of failure: auth, banned, region, billing, rate, overload, transport, context, content_policy,
            invalid or capability.
        status: HTTP status, when one arrived.
        retry_after: seconds after which it may be asked again, when it said so.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        status: int | None = None,
        retry_after: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.status = status
        self.retry_after = retry_after
