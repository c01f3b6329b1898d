"""Which family a model belongs to, from its chat template: the marks around its tool calls and its thinking.

Formats are those of the templates that the families publish: Hermes 2 Pro and Qwen 2.5/3 (`<tool_call>`), Llama 3.1
(https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1, JSON-based tool calling), DeepSeek V3 and R1
(`tokenizer_config.json`), Mistral (mistral-common, tokenizers v3 and v11). Knows no text but the template's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["hermes", "llama", "deepseek", "mistral"]

TOOL_OPEN, TOOL_CLOSE = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"
CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_SEP, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
MISTRAL_CALLS, MISTRAL_ARGS, MISTRAL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


@dataclass(frozen=True, slots=True)
class Family:
    """How one model writes calls and thinking.

    Args:
        kind: whose format.
        native: whether its template takes `tools`; otherwise a system prompt in Hermes' format tells of them.
        variant: "fenced" (DeepSeek V3: arguments in a block of code), "named" (Mistral v11: name[ARGS]{...}) or "".
        parallel: whether it can write several calls in one answer.
        reason: why this family.
        thinking: marks around its thinking, for models that think.
    """

    kind: Kind
    native: bool
    reason: str
    variant: str = ""
    parallel: bool = True
    thinking: tuple[str, str] | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """Everything that must stay visible in the model's output for calls and thinking to be found."""
        own = {
            "hermes": (TOOL_OPEN, TOOL_CLOSE),
            "llama": (PYTHON_TAG,),
            "deepseek": (CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_SEP, CALL_END),
            "mistral": (MISTRAL_CALLS, MISTRAL_ARGS, MISTRAL_ID),
        }
        return own[self.kind] + (self.thinking or ())


def choose(templates: Mapping[str, str]) -> Family:
    """The family of a model from its templates' sources; without any, or with none that we know, the generic format."""
    source = "\n".join(templates.values())
    thinking = next((pair for pair in THINKING if pair[0] in source or pair[1] in source), None)
    if not re.search(r"\btools\b", source):
        reason = "its chat template knows no tools: a system prompt tells of them, in Hermes' format"
        return Family("hermes", False, reason, thinking=thinking)
    if CALLS_BEGIN in source:
        variant = "fenced" if "```json" in source else ""
        return Family("deepseek", True, f"its chat template writes {CALLS_BEGIN}", variant, thinking=thinking)
    if TOOL_OPEN in source:
        return Family("hermes", True, f"its chat template writes {TOOL_OPEN}", thinking=thinking)
    if MISTRAL_CALLS in source:
        variant = "named" if MISTRAL_ARGS in source else ""
        return Family("mistral", True, f"its chat template writes {MISTRAL_CALLS}", variant, thinking=thinking)
    if PYTHON_TAG in source or re.search(r'"parameters"\s*:', source) or "ipython" in source:
        return Family("llama", True, "its chat template asks for Llama's JSON calls", "", False, thinking)
    reason = "its chat template takes tools in a format unknown to us: a system prompt in Hermes' format is used"
    return Family("hermes", False, reason, thinking=thinking)
