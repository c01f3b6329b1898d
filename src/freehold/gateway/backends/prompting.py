"""What the local engine is asked: prompts as token ids, and the grammar of the answer.

An answer that goes on behind text which another model wrote has to begin where that text ends, not where a token does:
the text's last token is cut off and the output is made to begin with its characters, so that the model chooses its own
way to write what straddles the end. Text from elsewhere never becomes control tokens. Knows no engine process.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from freehold.errors import TemplateError
from freehold.formats.template import ChatTemplate
from freehold.formats.tokenizer import Tokenizer
from freehold.gateway.backends.budget_of_thinking import budget_of
from freehold.gateway.conversation import Prompt, Request, Tool
from freehold.gateway.failures import CapabilityError, RequestError
from freehold.gateway.toolformats import choose, grammars
from freehold.gateway.toolformats.grammars import Opening
from freehold.gateway.toolformats.rendering import render


@dataclass(frozen=True, slots=True)
class Prepared:
    """One prompt.

    Args:
        echo: text to repeat before the answer.
        ids: what the engine gets.
        opening: what comes before the answer proper; `begin` is the end of the text to go on from.
        replayed: ids at the end that are earlier output, for the grammar.
        grammar: what the answer must follow.
    """

    echo: str
    ids: list[int]
    opening: Opening = field(default_factory=Opening)
    replayed: int = 0
    grammar: str | None = None


class Prompter:
    """Makes prompts for one model.

    Args:
        template: or why there is none that works.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | TemplateError) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self.family = choose({} if isinstance(template, TemplateError) else template.sources)
        ids = [(mark, self.mark(mark)) for mark in self.family.marks]
        self.kept = frozenset(id for _, id in ids if id is not None)
        end = tokenizer.token_id("<|eom_id|>") if self.family.kind == "llama" else None
        self.stop_ids = frozenset(tokenizer.eos) | (frozenset() if end is None else {end})

    @property
    def closing(self) -> list[int]:
        """What ends thinking, as tokens; none for models that don't think."""
        return [] if self.family.thinking is None else self._tokenizer.encode(f"\n{self.family.thinking[1]}\n\n")

    def mark(self, text: str) -> int | None:
        """The id of a mark that is a control token."""
        id = self._tokenizer.token_id(text)
        return id if id in self._tokenizer.special else None

    def prepare(self, request: Request) -> list[Prepared]:
        """All prompts of a request.

        Raises:
            TemplateError: the template refuses the conversation.
            RequestError: a tool_choice that names no tool, or an empty prompt.
        """
        if request.turns:
            return [self._chat(request)]
        return [self._raw(prompt, request) for prompt in request.prompts]

    def _chat(self, request: Request) -> Prepared:
        template = self._template
        assert not isinstance(template, TemplateError)  # noqa: S101  (check() has refused)
        extra = _thinking_switch(request)
        text = render(
            self.family,
            request,
            lambda messages, tools: template.render(messages, tools=tools, add_generation_prompt=True, **extra),
        )
        opening = self._opening(text)
        if request.continue_from and opening.thinking == "open":
            assert self.family.thinking is not None  # noqa: S101
            text, opening = f"{text.rstrip()}\n\n{self.family.thinking[1]}\n\n", Opening()
        prepared = Prepared("", self._tokenizer.encode(text), opening)
        return self._constrained(self._continued(prepared, text, request), request)

    def _opening(self, text: str) -> Opening:
        """Whether the answer begins with thinking, by the end of the prompt."""
        if self.family.thinking is None:
            return Opening()
        end = text.rstrip()
        if end.endswith(self.family.thinking[0]):
            return Opening("open")
        return Opening() if end.endswith(self.family.thinking[1]) else Opening("maybe")

    def _raw(self, prompt: Prompt, request: Request) -> Prepared:
        if not isinstance(prompt, str):
            prepared = Prepared(self._tokenizer.decode(prompt) if request.echo else "", list(prompt))
            return self._constrained(self._continued(prepared, None, request), request)
        ids = self._tokenizer.encode(prompt, bos=True)
        if not ids:
            start = self._tokenizer.bos if self._tokenizer.bos is not None else min(self._tokenizer.eos, default=None)
            if start is None:
                raise CapabilityError("Invalid 'prompt': the model can't start from an empty text.", param="prompt")
            ids = [start]
        prepared = Prepared(prompt if request.echo else "", ids)
        return self._constrained(self._continued(prepared, prompt, request), request)

    def _continued(self, prepared: Prepared, prompt: str | None, request: Request) -> Prepared:
        """The prompt with the text to go on from behind it."""
        text = request.continue_from
        if not text:
            return prepared
        written = self._tokenizer.encode(text, special=False)
        if self._bytes(written) != text.encode():  # the tokenizer adds or changes something at a beginning
            if prompt is not None:
                whole = self._tokenizer.encode(prompt + text, bos=not request.turns)
                return replace(prepared, ids=whole, opening=Opening())
            return replace(prepared, ids=prepared.ids + written, opening=Opening())
        if request.response_format is not None and _is_structured(request.response_format):
            return replace(prepared, ids=prepared.ids + written, replayed=len(written), opening=Opening())
        kept = self._healed(written)
        begin = text.encode()[len(self._bytes(kept)) :].decode()
        return replace(prepared, ids=prepared.ids + kept, opening=Opening(begin=begin))

    def _healed(self, written: list[int]) -> list[int]:
        """Ids without the last one, and without those before it that end inside a character."""
        if not self._tokenizer.eos:  # grammars need an end
            return written
        kept = written[:-1]
        while kept and not _is_whole(self._bytes(kept)):
            kept = kept[:-1]
        return kept

    def _bytes(self, ids: list[int]) -> bytes:
        return b"".join(map(self._tokenizer.token_bytes, ids))

    def _constrained(self, prepared: Prepared, request: Request) -> Prepared:
        """With the grammar of what the request asks for."""
        structured = request.response_format
        if structured is not None and not _is_structured(structured):
            structured = None
        if request.turns and request.wants_tools:
            tools, forced = offered(request)
            named = isinstance(request.tool_choice, dict) and request.tool_choice.get("type") == "function"
            grammar = grammars.tool_calls(
                self.family, tools, self.mark, forced=forced,
                parallel=request.parallel_tool_calls is not False and not named,  # a named function is called once
                opening=prepared.opening, response_format=structured,
            )  # fmt: skip
            return replace(prepared, grammar=grammar)
        if structured is None:
            return prepared
        grammar = grammars.structured(self.family, structured, self.mark, opening=prepared.opening)
        return replace(prepared, grammar=grammar)


def offered(request: Request) -> tuple[tuple[Tool, ...], bool]:
    """The tools that may be called, and whether one must be.

    Raises:
        RequestError: tool_choice names a tool that is not there.
    """
    choice = request.tool_choice
    if not isinstance(choice, dict):
        return request.tools, choice == "required"
    allowed = choice.get("allowed_tools")
    if choice.get("type") == "allowed_tools" and isinstance(allowed, dict):
        names = {_name(tool) for tool in allowed.get("tools") or []}
        forced = allowed.get("mode") == "required"
    else:
        names, forced = {_name(choice)}, True
    found = tuple(tool for tool in request.tools if tool.name in names)
    if not found:
        raise RequestError(
            "Invalid 'tool_choice': it names no tool of 'tools'.", param="tool_choice", code="invalid_value"
        )
    return found, forced


def _name(tool: Any) -> Any:
    if not isinstance(tool, dict):
        return None
    function = tool.get("function")
    return function.get("name") if isinstance(function, dict) else tool.get("name")


def _is_structured(response_format: dict[str, Any]) -> bool:
    return response_format.get("type") in ("json_object", "json_schema")


def _thinking_switch(request: Request) -> dict[str, Any]:
    """Names by which templates (Qwen's, DeepSeek's) let thinking be switched."""
    budget = budget_of(request)
    if budget is None and request.reasoning_effort is None:
        return {}
    wanted = budget != 0
    return {"enable_thinking": wanted, "thinking": wanted}


def _is_whole(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
