"""Records what reference tokenizers make of the texts below, with just enough of each vocabulary to repeat it.

    python make_vectors.py OUT_DIRECTORY VOCABULARY.gguf...

Needs llama-cpp-python. The vocabularies are SmolLM2's GGUF file and the `ggml-vocab-*.gguf` files that come with
llama.cpp (MIT), directory `models`. Beside those lie `.inp` and `.out` files: texts, and the ids that each model's own
Hugging Face tokenizer gave for them; those are recorded too. Ids for the texts below come from llama.cpp itself.

A vocabulary is cut down to the tokens that occur in the texts, and to the merges that make them: nothing else can take
part in encoding these texts, so the result is the same.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

from llama_cpp import Llama

TEXTS = [
    "",
    " ",
    "The capital of France is Paris.",
    "don't we'll I'VE she'd  they're",
    "In 2024, 1234567 of 98 765,4 items (12.5%) cost $3.99 each; x10^-3 ½ ² ٣٤",
    "def f(x: int) -> str:\n    if x >= 10:\n\t\treturn f'{x!r}'\n\n\n    return None  # done\r\n",
    "   leading, trailing   and   inner   spaces   ",
    "\n\n\t \n x\u00a0y\u3000z\u200bw",
    "Übermäßig schöne Grüße aus Köln, naïve façade, Ελληνικά, Русский, हिन्दी, ไทย, 한국어, 日本語のテキスト、中文。",
    "👩\u200d🚀🏳️\u200d🌈 emoji 😀😃, math ∑∫≠ ≤, arrows →⇒, ｆｕｌｌｗｉｄｔｈ！",
    "snake_case camelCase HTTPServer kebab-case https://example.com/a?b=c&d=%20#e user@example.org",
    "a" * 70 + " " + "=" * 40 + "!?!?...---" + "\x00\x01\x7f",
]
CHATS = ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "x<|endoftext|>y", "<s>[INST] Hi [/INST]</s>"]

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
KEPT = ("model", "pre", "add_bos_token", "add_space_prefix", "bos_token_id", "eos_token_id", "unknown_token_id")


def read_metadata(path: Path) -> dict[str, Any]:
    """GGUF metadata; an own small reader, so that the product's reader is not part of the reference."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise SystemExit(f"{path} is not GGUF")
        _, _, pairs = (number(file, code) for code in "IQQ")
        return {string(file): value(file, number(file, "I")) for _ in range(pairs)}


def number(file: BinaryIO, code: str) -> Any:
    return struct.unpack("<" + code, file.read(struct.calcsize("<" + code)))[0]


def string(file: BinaryIO) -> str:
    return file.read(number(file, "Q")).decode("utf-8")


def value(file: BinaryIO, kind: int) -> Any:
    if kind == 8:
        return string(file)
    if kind == 9:
        inner, count = number(file, "I"), number(file, "Q")
        return [value(file, inner) for _ in range(count)]
    return number(file, NUMBERS[kind])


def recorded(path: Path) -> list[dict[str, Any]]:
    """The cases lying beside a vocabulary: text, and ids by the model's own tokenizer."""
    texts, ids = path.with_name(path.name + ".inp"), path.with_name(path.name + ".out")
    if not texts.exists():
        return []
    lines = ids.read_text(encoding="utf-8").split("\n")
    parts = texts.read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    return [
        {"text": text, "ids": [int(id) for id in line.split()], "by": "transformers"}
        for text, line in zip(parts, lines, strict=False)
    ]


def marked(text: str, metadata: dict[str, Any]) -> bool:
    """Whether the marks in a text are control tokens here; llama.cpp also takes for control what only looks like it."""
    types = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True))
    return all(types.get(mark) in (3, None) for mark in re.findall(r"<[^<>]+>", text))


def byte_letters() -> dict[int, str]:
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def cut(metadata: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    get = {key.removeprefix("tokenizer.ggml."): found for key, found in metadata.items()}
    if get["model"] == "gpt2":
        letters = byte_letters()
        spelled = ["".join(letters[byte] for byte in text.encode("utf-8")) for text in texts]
    else:
        spelled = ["\u2581" + text.replace(" ", "\u2581") for text in texts]
    joined = "\u2063".join(spelled)
    named = {found for key, found in get.items() if key.endswith("_token_id")}
    keep = [
        id
        for id, token in enumerate(get["tokens"])
        if token in joined
        or len(token) == 1
        or id in named
        or get["token_type"][id] == 6
        or any(token in c for c in CHATS)
    ]
    out: dict[str, Any] = {"metadata": {f"tokenizer.ggml.{key}": get[key] for key in KEPT if key in get}}
    out["ids"] = keep
    out["tokens"] = [get["tokens"][id] for id in keep]
    out["token_type"] = [get["token_type"][id] for id in keep]
    if "scores" in get and get["model"] == "llama":
        out["scores"] = [get["scores"][id] for id in keep]
    if get["model"] == "gpt2":
        kept = set(out["tokens"])
        out["merges"] = [m for m in get["merges"] if m.replace(" ", "") in kept and set(m.split(" ")) <= kept]
    return out


def main() -> None:
    out = Path(sys.argv[1])
    for path in map(Path, sys.argv[2:]):
        llama = Llama(str(path), vocab_only=True, verbose=False)
        cases = recorded(path)
        for text in TEXTS:
            ids = llama.tokenize(text.encode("utf-8"), add_bos=False, special=False) if text else []
            cases.append({"text": text, "ids": ids, "by": "llama.cpp"})
        metadata = read_metadata(path)
        for text in filter(lambda text: marked(text, metadata), CHATS):
            ids = llama.tokenize(text.encode("utf-8"), add_bos=False, special=True)
            cases.append({"text": text, "ids": ids, "by": "llama.cpp", "special": True})
        vocabulary = cut(metadata, [case["text"] for case in cases])
        name = path.stem.removeprefix("ggml-vocab-").split(".")[0].lower()
        document = {"source": path.name, **vocabulary, "cases": cases}
        (out / f"{name}.json").write_text(json.dumps(document, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
