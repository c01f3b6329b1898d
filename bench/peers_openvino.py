"""OpenVINO as a peer: NNCF compresses, OpenVINO gives logits, GenAI is timed. Run with the Python that has all of them.

    python bench/peers_openvino.py export CHECKPOINT OUT                        float32, nothing compressed
    python bench/peers_openvino.py compress EXPORTED OUT CALIBRATION.npy OPTIONS   OPTIONS: JSON, see `compress`
    python bench/peers_openvino.py logits MODEL IDS.npy FIRST OUT.npy           IDS int32 [windows, T]
    python bench/peers_openvino.py shape CONFIG.json OUT [--group-size 64]      int4 weights that are random
    python bench/peers_openvino.py serve MODEL THREADS                          timed figures, as `peers.py` asks for them

CHECKPOINT is a directory of Hugging Face files, made into a model with a KV cache by optimum-intel, as its
`optimum-cli export openvino` does. `logits` writes float32 [windows, T-1-FIRST, vocabulary], the predictions at positions
FIRST .. T-2, computed in float32 and without quantizing activations, so that only what the weights lost shows. `serve`
answers each JSON line {"kind": "prefill" | "decode" | "streams", "ids", "tokens", "streams"} with {"seconds"}. It knows
nothing of Freehold.

    pip install torch==2.13.0 "optimum-intel[openvino]" openvino-genai nncf
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

MODEL = "openvino_model.xml"
KV_GB = 1
"""Room for keys and values of 32 streams of 192 tokens, many times over."""


def export(checkpoint: str, out: str, dtype: str = "fp32") -> None:
    """A checkpoint as OpenVINO's own files."""
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    main_export(
        checkpoint,
        output=out,
        task="text-generation-with-past",
        ov_config=OVConfig(dtype=dtype),
        convert_tokenizer=False,
        library_name="transformers",
    )


def inputs_of(model: ov.Model, ids: np.ndarray) -> dict[str, np.ndarray]:
    """What a model with a KV cache of its own takes for sequences from their beginning; ids [B, T]."""
    given = {
        "input_ids": ids.astype(np.int64),
        "attention_mask": np.ones(ids.shape, np.int64),
        "position_ids": np.broadcast_to(np.arange(ids.shape[1], dtype=np.int64), ids.shape),
        "beam_idx": np.arange(len(ids), dtype=np.int32),
    }
    return {name: given[name] for name in (port.any_name for port in model.inputs)}


def compress(source: str, out: str, calibration: str, options: dict[str, Any]) -> None:
    """NNCF's weight compression.

    Options are those of `nncf.compress_weights`: "mode" ("int4_sym"), "group_size", "ratio", "all_layers" as they are;
    "awq", "scale_estimation", "gptq" and "lora_correction" measure on the calibration ids [windows, T].
    """
    import nncf

    model = ov.Core().read_model(Path(source) / MODEL)
    words = dict(options, mode=nncf.CompressWeightsMode(options["mode"]))
    if {"awq", "scale_estimation", "gptq", "lora_correction"} & {name for name, on in options.items() if on}:
        windows = np.load(calibration)
        items = [inputs_of(model, window[None]) for window in windows]
        words |= {"dataset": nncf.Dataset(items), "subset_size": len(items)}
    model = nncf.compress_weights(model, **words)
    Path(out).mkdir(parents=True)
    ov.save_model(model, Path(out) / MODEL, compress_to_fp16=False)
    print(json.dumps({"bytes": constants(model)}))


def constants(model: ov.Model) -> int:
    """Bytes of all numbers that came with the weights: codes, scales, zero points, norms; what only steers is less."""
    found = (node for node in model.get_ops() if node.get_type_name() == "Constant")
    return sum(node.get_byte_size() for node in found)


def logits(directory: str, ids_file: str, first: int, out: str, threads: int = 2) -> None:
    core, windows = ov.Core(), np.load(ids_file)
    model = core.read_model(Path(directory) / MODEL)
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "KV_CACHE_PRECISION": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    kept = []
    for window in windows:
        request.reset_state()
        result = request.infer(inputs_of(model, window[None]))
        [given] = [value for port, value in result.items() if "logits" in port.get_names()]
        kept.append(given[0, first:-1].astype(np.float32))
    np.save(out, np.stack(kept))


def shape(config_file: str, out: str, group_size: int) -> None:
    """Random weights of a Hugging Face config's sizes, exported and compressed to int4."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**json.loads(Path(config_file).read_text()))
    if config.eos_token_id is None:  # GenAI wants one, though generations are told to ignore it
        config.eos_token_id = 0
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as work:
        made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        made.save_pretrained(Path(work) / "made")
        del made
        export(str(Path(work) / "made"), str(Path(work) / "exported"), "fp16")
        compress(str(Path(work) / "exported"), out, "", {"mode": "int4_sym", "group_size": group_size})
        for name in ("config.json", "generation_config.json"):
            (Path(out) / name).write_text((Path(work) / "exported" / name).read_text())


class Timed:
    """One model behind GenAI's pipeline with continuous batching and paged attention, its default for a model alone, too.

    Everything else is its own default: bfloat16 where the CPU has it, activations quantized in groups of 32.
    """

    def __init__(self, model: str, threads: int) -> None:
        import openvino_genai as genai

        self._genai = genai
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.cache_size = KV_GB
        scheduler.max_num_batched_tokens = 2048
        self._pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})

    def figure(self, kind: str, ids: list[int], tokens: int, streams: int) -> float:
        """Seconds: of a prompt and its first token; of `tokens` more after it; or of all streams from begin to end."""
        count = {"prefill": 1, "decode": tokens + 1, "streams": tokens}[kind]
        prompt = ov.Tensor(np.array([ids], np.int64))
        greedy = self._genai.GenerationConfig(
            max_new_tokens=count, min_new_tokens=count, ignore_eos=True, do_sample=False
        )
        begin = time.perf_counter()
        done = self._pipeline.generate([prompt] * streams, [greedy] * streams)
        seconds = time.perf_counter() - begin
        made = [len(result.m_generation_ids[0]) for result in done]
        if made != [count] * streams:
            sys.exit(f"expected {count} tokens of each of {streams} requests, got {sorted(set(made))}")
        return seconds - float(done[0].perf_metrics.get_ttft().mean) / 1e3 if kind == "decode" else seconds


def serve(model: str, threads: int) -> None:
    import openvino_genai as genai

    answers, sys.stdout = sys.stdout, sys.stderr  # whatever libraries print must not mix with the answers
    timed = Timed(model, threads)
    capabilities = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    facts = {"name": "OpenVINO GenAI", "version": genai.__version__, "cpu": capabilities}
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        seconds = timed.figure(asked["kind"], asked["ids"], asked["tokens"], asked.get("streams", 1))
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("export", "compress", "logits", "shape", "serve"))
    parser.add_argument("words", nargs="+")
    parser.add_argument("--group-size", type=int, default=64, help="of `shape` [default: %(default)s]")
    given = parser.parse_args()
    match given.verb, given.words:
        case "export", [checkpoint, out]:
            export(checkpoint, out)
        case "compress", [source, out, calibration, options]:
            compress(source, out, calibration, json.loads(options))
        case "logits", [model, ids, first, out]:
            logits(model, ids, int(first), out)
        case "shape", [config, out]:
            shape(config, out, given.group_size)
        case "serve", [model, threads]:
            serve(model, int(threads))
        case _:
            parser.error(f"{given.verb} does not take {len(given.words)} words")


if __name__ == "__main__":
    main()
