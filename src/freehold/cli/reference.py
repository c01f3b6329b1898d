"""`docs/reference.md`, written from the verbs' help and the settings' fields; a test holds the two equal.

python -m freehold.cli.reference docs/reference.md    writes the page
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from pathlib import Path
from typing import Any

import click

from freehold.cli import VERBS, app
from freehold.cli.options import setting_fields
from freehold.settings import SECTIONS, TABLES, env_name, own

HEAD = """# Reference

Written from the code by `make reference`; don't edit. Data goes to stdout, words to stderr; `--json` makes a verb's
report machine-readable; `NO_COLOR` is honoured. Beside the settings, `FREEHOLD_CONFIG` names the settings file,
`FREEHOLD_HOME` the directory of the store, and `FREEHOLD_DEBUG=1` does what `--debug` does.

| exit code | meaning |
|---|---|
| 0 | good |
| 1 | the thing checked fell short (`doctor`, ...) |
| 2 | wrong use: a flag, an argument or a setting |
| 3 | a dependency failed: a file, the network, a provider |
| 70 | a bug of ours; `freehold --debug ...` shows the traceback |
| 130, 141 | interrupted; the reader of our output went away |
"""


def page() -> str:
    """The whole page, the same on every machine."""
    parts = [HEAD, "## Settings\n", _settings(), "## Tables\n", _tables(), "## Verbs\n", _help(app, ["freehold"])]
    for name in VERBS:
        verb = app.get_command(click.Context(app), name)
        if verb is None:
            raise LookupError(name)
        parts.append(_help(verb, ["freehold", name]))
        if isinstance(verb, click.Group):
            parts += [_help(sub, ["freehold", name, key]) for key, sub in verb.commands.items()]
    return "\n".join(parts)


def _settings() -> str:
    lines = [
        "From a TOML file (`freehold config init` writes one), the environment, or a flag of the verbs that use it.\n"
    ]
    for section, cls in SECTIONS.items():
        lines += [f"### [{section}]\n", inspect.cleandoc(cls.__doc__ or "") + "\n"]
        lines += ["| setting | environment | type | default | meaning |", "|---|---|---|---|---|"]
        for _, item, kind in setting_fields(section):
            lines.append(
                f"| `{item.name}` | `{env_name(item.name)}` | {_type(kind)} | {_default(item)} | {_meaning(item)} |"
            )
        lines.append("")
    return "\n".join(lines)


def _tables() -> str:
    """The tables that a file may have any number of; they have neither flags nor variables."""
    lines = ["Written once for each, in the order in which they count; only in the file.\n"]
    for name, cls in TABLES.items():
        lines += [f"### [[{name}]]\n", inspect.cleandoc(cls.__doc__ or "") + "\n"]
        lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        hints = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            if dataclasses.is_dataclass(hints[item.name]):  # what a table may say otherwise than a section
                lines += [_inherited(item.name, field) for field in dataclasses.fields(hints[item.name]) if own(field)]
            else:
                lines.append(f"| `{item.name}` | {_type(hints[item.name])} | {_default(item)} | {_meaning(item)} |")
        lines.append("")
    return "\n".join(lines)


def _inherited(section: str, item: dataclasses.Field[Any]) -> str:
    kind = typing.get_type_hints(SECTIONS[section])[item.name]
    return f"| `{item.name}` | {_type(kind)} | `[{section}]`'s | {_meaning(item)} |"


def _type(kind: Any) -> str:
    """A type as TOML's documentation calls it."""
    if typing.get_origin(kind) is tuple:
        return "array of strings"
    words = {str: "string", bool: "boolean", int: "integer", float: "float"}
    return next(words[one] for one in (kind, *typing.get_args(kind)) if one in words)


def _default(item: dataclasses.Field[Any]) -> str:
    if item.metadata["inherits"]:
        return f"`[{item.metadata['inherits']}]`'s"
    return "" if item.default in ("", ()) else f"`{item.default}`"


def _meaning(item: dataclasses.Field[Any]) -> str:
    choices = item.metadata["choices"]
    listed = "Some of" if item.default == () else "One of"
    text: str = item.metadata["help"].replace("|", "\\|")
    return text + (f" {listed} {', '.join(choices)}." if choices else "")


def _help(command: click.Command, words: list[str]) -> str:
    """One verb from its parameters, not from click's rendering, which changes from version to version."""
    arguments = [p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)]
    subverbs = ["VERB ..."] if isinstance(command, click.Group) else []
    text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    lines = [f"### {' '.join(words)}\n", f"`{' '.join([*words, '[OPTIONS]', *arguments, *subverbs])}`\n", text + "\n"]
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if options:
        lines += ["| option | meaning |", "|---|---|", *map(_option, options), ""]
    return "\n".join(lines)


def _option(option: click.Option) -> str:
    value = ""
    if isinstance(option.type, click.Choice):
        value = " " + "\\|".join(option.type.choices)
    elif not option.is_flag:
        kinds = {click.types.IntParamType: "INT", click.types.FloatParamType: "FLOAT"}
        kind = next((word for base, word in kinds.items() if isinstance(option.type, base)), "TEXT")
        if isinstance(option.type, click.Path):
            kind = "FILE" if option.type.file_okay else "DIRECTORY"
        value = " " + (option.metavar or kind)
    text = (option.help or "").replace("|", "\\|")
    return f"| `{', '.join(option.opts)}{value}` | {text} |"


def main() -> None:
    """Write the page to the file named, or to stdout."""
    if len(sys.argv) > 1:
        target = Path(sys.argv[1])
        partial = target.with_name(target.name + ".partial")
        partial.write_text(page(), encoding="utf-8")
        partial.replace(target)
    else:
        sys.stdout.write(page())


if __name__ == "__main__":
    main()
