"""Chat templates: a conversation in, the text the model was trained on out.

Templates are programs by strangers, run in `sandbox.Sandbox`: they can't reach Python, files or the network, and
what they may use of time and memory is bounded. Conventions (names, filters, whitespace) are those of Hugging Face
transformers, https://huggingface.co/docs/transformers/chat_templating. Errors name files without their directories:
clients of a server see them. This module knows no tokens and no HTTP.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from freehold.errors import FormatError, TemplateError
from freehold.formats.reading import read_json

MAX_SOURCE = 1 << 20  # characters; the longest in use is below 40,000
MAX_OUTPUT = 16 << 20  # characters
NO_TEMPLATE = "this is a base model: use completions (`/v1/completions`), or add a chat_template.jinja to its directory"


class ChatTemplate:
    """Renders conversations.

    Args:
        templates: sources by name: "default", perhaps "tool_use" for conversations with tools.
        tokens: special tokens as text (`bos_token`, `eos_token`, ...), offered to the template.
        where: origin, for error messages.
        now: the clock behind `strftime_now`.

    Raises:
        TemplateError: no default template, too long, or a syntax error.
    """

    def __init__(
        self,
        templates: Mapping[str, str],
        *,
        tokens: Mapping[str, str] | None = None,
        where: str = "chat template",
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        from freehold.formats.sandbox import Sandbox

        if "default" not in templates:
            raise TemplateError(f"{where}: no chat template", hint=NO_TEMPLATE)
        self.sources = dict(templates)
        self._tokens, self._where = dict(tokens or {}), where
        self._environment = Sandbox()
        self._environment.globals["raise_exception"] = _refuse
        self._environment.globals["strftime_now"] = lambda pattern: now().strftime(str(pattern)[:1000])
        self._compiled = {name: self._compile(name, source) for name, source in templates.items()}

    @classmethod
    def of(cls, path: Path) -> ChatTemplate:
        """The template of a model directory or a .gguf file.

        Raises:
            TemplateError: there is none, or it is broken.
        """
        path = Path(path)
        where = path.name or path.resolve().name
        if path.is_dir():
            return cls(templates_of_directory(path), tokens=_tokens_of_directory(path), where=where)
        from freehold.formats.gguf import GGUFFile
        from freehold.formats.gguf_tokenizer import special_tokens, templates_of_metadata

        file = GGUFFile(path)
        try:
            return cls(templates_of_metadata(file.metadata), tokens=special_tokens(file.metadata), where=where)
        finally:
            file.close()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """The prompt for a conversation.

        Args:
            messages: `{"role": ..., "content": ...}` and what else the template reads.
            tools: JSON schemas of functions the model may call.
            add_generation_prompt: end with the opening of the assistant's turn.
            extra: further names for the template (`enable_thinking`, `documents` ...).

        Raises:
            TemplateError: the template refuses the conversation, fails, reaches outside its sandbox or uses too much.
        """
        import jinja2

        from freehold.formats.sandbox_meter import LimitError, Meter, metered

        template = self._compiled["tool_use" if tools and "tool_use" in self._compiled else "default"]
        names = {
            **self._tokens,
            **extra,
            "messages": list(messages),
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            with metered(Meter()):
                return _bounded(template.root_render_func(template.new_context(names)))
        except _Refused as error:
            raise TemplateError(f"the chat template refuses this conversation: {error}") from None
        except jinja2.exceptions.SecurityError as error:
            raise TemplateError(f"{self._where}: chat template reaches outside its sandbox: {error}") from None
        except LimitError as error:
            raise TemplateError(f"{self._where}: chat template needs {error}", hint="no chat template should") from None
        except (RecursionError, MemoryError) as error:
            raise TemplateError(f"{self._where}: chat template recurses or grows without end ({error})") from None
        except Exception as error:  # a template's own mistake can surface as any exception
            raise TemplateError(f"{self._where}: chat template fails: {type(error).__name__}: {error}") from None

    def _compile(self, name: str, source: str) -> Any:
        import jinja2

        from freehold.formats.sandbox_meter import Meter, metered

        if len(source) > MAX_SOURCE:
            raise TemplateError(
                f"{self._where}: chat template has {len(source):,} characters, expected at most {MAX_SOURCE:,}"
            )
        try:
            with metered(Meter()):  # the compiler evaluates constant expressions
                return self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"{self._where}: chat template {name!r}, line {error.lineno}: {error.message}"
            ) from None
        except Exception as error:  # nested too deep for the compiler, constant expressions that fail
            raise TemplateError(
                f"{self._where}: chat template {name!r} does not compile: {type(error).__name__}"
            ) from None


class _Refused(Exception):
    """`raise_exception` was called."""


def _refuse(message: object = "") -> NoReturn:
    raise _Refused(str(message)[:2000])


def _bounded(pieces: Any) -> str:
    from freehold.formats.sandbox_meter import LimitError

    out: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_OUTPUT:
            raise LimitError(f"more than {MAX_OUTPUT >> 20} Mi characters of output")
        out.append(piece)
    return "".join(out)


def templates_of_directory(directory: Path) -> dict[str, str]:
    """Sources by name: chat_template.jinja and additional_chat_templates/*.jinja, else tokenizer_config.json."""
    found: dict[str, str] = {}
    config = directory / "tokenizer_config.json"
    listed = _json(config).get("chat_template") if config.is_file() else None
    if isinstance(listed, str):
        found["default"] = listed
    elif isinstance(listed, list):
        entries = [entry for entry in listed if isinstance(entry, dict)]
        found |= {str(entry.get("name")): text for entry in entries if isinstance(text := entry.get("template"), str)}
    files = {"default": directory / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    for name, file in files.items():
        if file.is_file():
            found[name] = _source(file)
    return found


def _tokens_of_directory(directory: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in (directory / "special_tokens_map.json", directory / "tokenizer_config.json"):
        for name, mark in (_json(file) if file.is_file() else {}).items():
            text = mark.get("content") if isinstance(mark, dict) else mark
            if name.endswith("_token") and isinstance(text, str):
                found[name] = text
    return found


def _json(file: Path) -> dict[str, Any]:
    try:
        return read_json(file, "tokenizer file")
    except FormatError as error:
        raise TemplateError(error.message.replace(str(file), file.name), hint=error.hint) from None


def _source(file: Path) -> str:
    if file.stat().st_size > 4 * MAX_SOURCE:
        raise TemplateError(f"{file.name} has {file.stat().st_size:,} bytes, too many for a chat template")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TemplateError(f"{file.name} is not UTF-8: byte {error.start}") from None
