"""A tiny random Llama that reads and writes bytes: a whole model directory, with tokenizer and chat template."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tests.engine import tiny
from tokenizers import decoders, models, pre_tokenizers

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
VOCABULARY = len(BYTES) + len(SPECIAL)
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write(directory: Path, *, template: str | None = TEMPLATE, context: int = 4096) -> Path:
    """The model directory. Its chat template marks turns as `<|role|>text<|end|>`."""
    tiny.write(directory, vocab_size=VOCABULARY, max_position_embeddings=context)
    core = tokenizers.Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(BYTES)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    core.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    if template is not None:
        config["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
