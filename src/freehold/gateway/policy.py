"""What the settings say about routing: which route a model falls under, where it leads, and when it is read anew.

Knows names of models and backends only; `router.py` applies it.
"""

from __future__ import annotations

import asyncio
import fnmatch
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from freehold.errors import FreeholdError, SettingError
from freehold.settings import RouterSettings, RouteSettings, Settings
from freehold.settings_file import load

log = logging.getLogger("freehold.gateway")

CORE = "local"


@dataclass(frozen=True, slots=True)
class Policy:
    """`[router]` and the `[[route]]` tables."""

    default: RouterSettings = field(default_factory=RouterSettings)
    routes: tuple[RouteSettings, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        """The policy in the settings."""
        return cls(settings.router, settings.routes)

    def route(self, model: str) -> RouteSettings:
        """The first route whose pattern matches; one without a pattern when none does."""
        for route in self.routes:
            if fnmatch.fnmatchcase(model, route.model):
                return route
        return RouteSettings(router=self.default)

    def aliases(self) -> list[tuple[str, RouteSettings]]:
        """Routes whose pattern is a plain name: those can be shown as models."""
        return [(route.model, route) for route in self.routes if not set(route.model) & set("*?[")]

    def check(self, backends: Sequence[tuple[str, str]]) -> None:
        """Refuses routes that lead nowhere.

        Args:
            backends: name and model of each.

        Raises:
            SettingError: a target names no backend, or one that has no model to ask for.
        """
        models = dict(backends)
        for route in self.routes:
            for target in route.to:
                name, model = split_target(target, models)
                if not (model or models[name]):
                    hint = f'write "{name}.MODEL", or give the upstream a model'
                    raise SettingError(f"[[route]] {route.model}: '{name}' has no model to ask for", hint=hint)


def split_target(target: str, known: Sequence[str] | dict[str, str]) -> tuple[str, str]:
    """`name` or `name.model` as both; the model is empty when not said.

    Raises:
        SettingError: no backend of that name.
    """
    for name in sorted(known, key=len, reverse=True):  # names may contain dots, and so may models
        if target == name or (target.startswith(name + ".") and len(target) > len(name) + 1):
            return name, target[len(name) + 1 :]
    raise SettingError(f"a [[route]] leads to '{target}', which is no backend", hint="backends: " + ", ".join(known))


class PolicyFile:
    """The settings file, looked at again and again. A broken one changes nothing but `problem`.

    Args:
        apply: gets the new settings; may refuse them by raising a FreeholdError.
        told: gets what is wrong now, or None when all is well.
    """

    def __init__(self, file: Path, apply: Callable[[Settings], None], told: Callable[[str | None], None]) -> None:
        self._file = file
        self._apply = apply
        self._told = told
        self._seen = self._mark()

    def look(self) -> None:
        """Reads the file when it has changed since the last look."""
        mark = self._mark()
        if mark is not None and mark != self._seen:
            self.read()

    def read(self) -> None:
        """Reads the file now."""
        self._seen = self._mark()  # before reading: a change while we read is seen at the next look
        try:
            self._apply(load(self._file))
        except FreeholdError as error:
            log.error("routes stay as they were: %s", error.message)
            self._told("the settings file has changed, but can't be used; routes stay as they were (see the log)")
        else:
            log.info("routes were read again from %s", self._file)
            self._told(None)

    async def watch(self, seconds: float) -> None:
        """Looks every `seconds`, for ever."""
        while True:
            await asyncio.sleep(seconds)
            self.look()

    def _mark(self) -> tuple[int, int, int] | None:
        """Changes when the file does; None while it is away, as in the middle of some editors' saving."""
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
