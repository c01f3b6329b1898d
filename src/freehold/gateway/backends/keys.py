"""Keys of upstreams: read from the environment or a private file, never shown again.

Knows no HTTP. A `Key` prints as dots and can take itself out of any text that a provider sent back.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from freehold.errors import SettingError
from freehold.settings import UpstreamSettings

# Providers echo keys in their errors, whole or with the middle starred out.
_LOOKS_LIKE_KEY = re.compile(r"\b(sk|key|gsk|xai|pk|AIza)[-_][\w*.-]{6,}|\bBearer\s+\S+", re.IGNORECASE)
HIDDEN = "[key]"


class Key:
    """A secret. `reveal` is for the request header only."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Key(...)"

    def __bool__(self) -> bool:
        return bool(self._value)

    def reveal(self) -> str:
        """The key itself."""
        return self._value

    def redact(self, text: str) -> str:
        """`text` without this key or anything that looks like one."""
        if self._value:
            text = text.replace(self._value, HIDDEN)
        return _LOOKS_LIKE_KEY.sub(HIDDEN, text)


def read_keys(upstream: UpstreamSettings, environment: Mapping[str, str] | None = None) -> tuple[Key, ...]:
    """The keys of an upstream in the order of its settings: `key_env` may name several variables, separated by commas.

    Raises:
        SettingError: as `read_key`, or two variables hold the same key.
    """
    names = [name.strip() for name in upstream.key_env.split(",")] if upstream.key_env else [""]
    keys = tuple(read_key(replace(upstream, key_env=name), environment) for name in names if name or len(names) == 1)
    if len({key.reveal() for key in keys}) < len(keys):
        raise SettingError(
            f"[[upstream]] {upstream.name}: expected different keys in {upstream.key_env}, found one twice"
        )
    return keys


def read_key(upstream: UpstreamSettings, environment: Mapping[str, str] | None = None) -> Key:
    """The key of an upstream; empty when its settings name none.

    Raises:
        SettingError: the variable is unset, the file is missing or readable by others, or the key has odd characters.
    """
    environment = os.environ if environment is None else environment
    where = f"[[upstream]] {upstream.name}"
    if upstream.key_env and upstream.key_file:
        raise SettingError(f"{where}: expected key_env or key_file, found both")
    if upstream.key_env:
        if not environment.get(upstream.key_env):
            hint = f"export {upstream.key_env}=... before starting, or remove the upstream"
            raise SettingError(f"{where}: environment variable {upstream.key_env} is not set", hint=hint)
        return _checked(environment[upstream.key_env], f"{where}: {upstream.key_env}")
    if upstream.key_file:
        return _from_file(Path(upstream.key_file).expanduser(), where)
    return Key("")


def _from_file(path: Path, where: str) -> Key:
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                hint = f"chmod 600 {path}"
                raise SettingError(f"{where}: expected {path} to have mode 0600, found {mode:04o}", hint=hint)
            return _checked(file.read(4096), f"{where}: {path}")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise SettingError(f"{where}: can't read key_file {path}: {reason}") from None


def _checked(raw: str, where: str) -> Key:
    value = raw.strip()
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise SettingError(f"{where}: expected one line of printable ASCII without spaces, found something else")
    return Key(value)
