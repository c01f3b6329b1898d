"""llama.cpp as a peer: quantizes GGUF files and gives logits for token ids. Run with the Python that has llama-cpp-python.

    python bench/peers_llama.py quantize SOURCE.gguf OUT.gguf TYPE [--pure]     TYPE: Q4_0, Q4_K_M ...
    python bench/peers_llama.py logits MODEL.gguf IDS.npy FIRST OUT.npy         IDS int32 [windows, T]
    python bench/peers_llama.py text MODEL.gguf PROMPT_IDS.json COUNT           greedy continuation, as ids
    python bench/peers_llama.py shape CONFIG.json OUT.gguf                      Q4_0 weights that are random
    python bench/peers_llama.py serve MODEL.gguf THREADS                        timed figures, as `peers.py` asks for them

`logits` writes float32 [windows, T-1-FIRST, vocabulary], the predictions at positions FIRST .. T-2. `shape` takes a Hugging
Face config and writes what llama.cpp's own Q4_0 would hold: layers in Q4_0, a tied embedding in Q6_K, or in Q8_0 where
rows don't divide into 256. `serve` answers each JSON line {"kind": "prefill" | "decode" | "streams", "ids", "tokens",
"streams"} with {"seconds"}. It knows nothing of Freehold.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

THREADS = 2


def quantize(source: str, out: str, kind: str, pure: bool) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.nthread, params.allow_requantize, params.pure = THREADS, True, pure
    if llama_cpp.llama_model_quantize(source.encode(), out.encode(), params) != 0:
        sys.exit(f"llama.cpp could not quantize {source}")


def logits(model: str, ids: str, first: int, out: str) -> None:
    windows = np.load(ids)
    llm = llama_cpp.Llama(
        model, n_ctx=windows.shape[1], n_batch=windows.shape[1], n_threads=THREADS, logits_all=True, verbose=False
    )
    kept = []
    for window in windows:
        llm.reset()
        llm.eval(window.tolist())
        kept.append(np.array(llm.scores[first : windows.shape[1] - 1], np.float32))
    np.save(out, np.stack(kept))


def text(model: str, prompt: str, count: int) -> None:
    llm = llama_cpp.Llama(model, n_ctx=512, n_threads=THREADS, verbose=False)
    ids = json.loads(prompt)
    made = []
    for token in llm.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
        made.append(int(token))
        if len(made) == count:
            break
    print(json.dumps(made))


def random_blocks(rng: np.random.Generator, rows: int, columns: int, kind: str) -> np.ndarray:
    """Random codes under scales that keep values small: uint8 [rows, bytes]."""
    values, size, scale_at, scale = {
        "Q4_0": (32, 18, 0, 0.01),
        "Q8_0": (32, 34, 0, 0.0005),
        "Q6_K": (256, 210, 208, 0.00005),
    }[kind]
    blocks = rng.integers(0, 256, (rows, columns // values, size), np.uint8)
    blocks[:, :, scale_at : scale_at + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


def shape(config_file: str, out: str) -> None:
    import gguf

    config = json.loads(Path(config_file).read_text())
    family = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}[
        config["architectures"][0]
    ]
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim", hidden // heads)
    writer, rng = gguf.GGUFWriter(out, family), np.random.default_rng(0)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(2)

    def matrix(name: str, rows: int, columns: int, kind: str = "Q4_0") -> None:
        data = random_blocks(rng, rows, columns, kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType[kind])

    def vector(name: str, length: int, value: float = 1.0) -> None:
        writer.add_tensor(name, np.full(length, value, np.float32))

    head = "Q6_K" if hidden % 256 == 0 else "Q8_0"
    matrix("token_embd", vocabulary, hidden, head if config["tie_word_embeddings"] else "Q4_0")
    if not config["tie_word_embeddings"]:
        matrix("output", vocabulary, hidden, head)
    vector("output_norm.weight", hidden)
    for layer in range(config["num_hidden_layers"]):
        name = f"blk.{layer}"
        vector(f"{name}.attn_norm.weight", hidden)
        vector(f"{name}.ffn_norm.weight", hidden)
        for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            matrix(f"{name}.attn_{part}", count * dim, hidden)
            if family == "qwen2":
                vector(f"{name}.attn_{part}.bias", count * dim, 0.02)
            if family == "qwen3" and part != "v":
                vector(f"{name}.attn_{part}_norm.weight", dim)
        matrix(f"{name}.attn_output", hidden, heads * dim)
        matrix(f"{name}.ffn_gate", inner, hidden)
        matrix(f"{name}.ffn_up", inner, hidden)
        matrix(f"{name}.ffn_down", hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Timed:
    """A model and a context for several sequences; the lower-level functions, so that no Python is in the way.

    The cache is llama.cpp's own default (f16).
    """

    def __init__(self, model: str, threads: int, tokens: int = 12288, sequences: int = 32) -> None:
        llama_cpp.llama_backend_init()
        # numbers of this binding's log levels mean nothing here: silence
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, None)
        self._model = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            sys.exit(f"llama.cpp could not load {model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = tokens, 512, 512, sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(512, 0, 1)

    def run(self, rows: list[tuple[int, int, int]], wanted: list[int]) -> list[int]:
        """Rows (token, position, sequence); the likeliest next token of each wanted row."""
        batch = self._batch
        batch.n_tokens = len(rows)
        asked = set(wanted)
        for i, (token, position, sequence) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position, 1, sequence
            batch.logits[i] = i in asked
        if llama_cpp.llama_decode(self._context, batch) != 0:
            sys.exit("llama.cpp could not run a batch")
        best = []
        for i in wanted:
            logits = llama_cpp.llama_get_logits_ith(self._context, i)
            best.append(int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax()))
        return best

    def prompt(self, ids: list[int], sequence: int) -> int:
        """The first token after a prompt."""
        best = [0]
        for begin in range(0, len(ids), 512):
            part = ids[begin : begin + 512]
            last = begin + 512 >= len(ids)
            rows = [(token, begin + i, sequence) for i, token in enumerate(part)]
            best = self.run(rows, [len(part) - 1] if last else [])
        return best[0]

    def figure(self, kind: str, ids: list[int], tokens: int, streams: int) -> float:
        """Seconds: of a prompt and its first token; of `tokens` more after it; or of all streams from begin to end."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        begin = time.perf_counter()
        if kind == "streams":
            current = [self.prompt(ids, number) for number in range(streams)]
            for step in range(tokens - 1):
                rows = [(token, len(ids) + step, number) for number, token in enumerate(current)]
                current = self.run(rows, list(range(streams)))
            return time.perf_counter() - begin
        token = self.prompt(ids, 0)
        if kind == "prefill":
            return time.perf_counter() - begin
        begin = time.perf_counter()
        for step in range(tokens):
            [token] = self.run([(token, len(ids) + step, 0)], [0])
        return time.perf_counter() - begin


def serve(model: str, threads: int) -> None:
    timed = Timed(model, threads)
    facts = {"name": "llama.cpp", "version": llama_cpp.__version__, "cpu": llama_cpp.llama_print_system_info().decode()}
    print(json.dumps(facts | {"vocabulary": timed._vocabulary}), flush=True)
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        seconds = timed.figure(asked["kind"], asked["ids"], asked["tokens"], asked.get("streams", 1))
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "shape":
        shape(*words)
    elif verb == "serve":
        serve(words[0], int(words[1]))
    elif verb == "quantize":
        quantize(*words[:3], pure="--pure" in words)
    elif verb == "logits":
        logits(words[0], words[1], int(words[2]), words[3])
    else:
        text(words[0], words[1], int(words[2]))
