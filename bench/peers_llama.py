"""llama.cpp as a peer: quantizes GGUF files and gives logits for token ids. Run with the Python that has llama-cpp-python.

    python bench/peers_llama.py quantize SOURCE.gguf OUT.gguf TYPE [--pure]     TYPE: Q4_0, Q4_K_M ...
    python bench/peers_llama.py logits MODEL.gguf IDS.npy FIRST OUT.npy         IDS int32 [windows, T]
    python bench/peers_llama.py text MODEL.gguf PROMPT_IDS.json COUNT           greedy continuation, as ids

`logits` writes float32 [windows, T-1-FIRST, vocabulary], the predictions at positions FIRST .. T-2. It knows nothing of
Freehold.
"""

from __future__ import annotations

import json
import sys

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


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "quantize":
        quantize(*words[:3], pure="--pure" in words)
    elif verb == "logits":
        logits(words[0], words[1], int(words[2]), words[3])
    else:
        text(words[0], words[1], int(words[2]))
