"""The engine: what a request gets never depends on what runs beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.engine import tiny

from freehold.engine.models import program_for
from freehold.engine.request import GenerateRequest, Sampling
from freehold.engine.runner import Engine, StepError
from freehold.engine.sampler import NOT_FINITE
from freehold.errors import ContextLengthError, OverloadedError, UsageError
from freehold.kernels.cpu import available_tiers
from freehold.kernels.program import Step
from freehold.settings import EngineSettings


def one_by_one(prompts: list[list[int]], tier: str = "reference", **sampling: object) -> dict[str, list[int | None]]:
    running = tiny.engine(tier=tier)
    out: dict[str, list[int | None]] = {}
    for i, prompt in enumerate(prompts):
        running.add(tiny.request(f"r{i}", prompt, **sampling))
        out |= tiny.texts(tiny.drain(running))
    return out


@pytest.mark.parametrize("tier", ["reference", *available_tiers()])
@pytest.mark.parametrize("max_step_tokens", [1, 7, 64, 512])
def test_greedy_output_is_the_same_one_by_one_and_32_at_a_time_for_any_chunk_size(
    max_step_tokens: int, tier: str
) -> None:
    prompts = tiny.prompts(32)
    alone = one_by_one(prompts, tier=tier)
    together = tiny.engine(pages=128, max_step_tokens=max_step_tokens, tier=tier, threads=2)
    for i, prompt in enumerate(prompts):
        together.add(tiny.request(f"r{i}", prompt))
    assert tiny.texts(tiny.drain(together)) == alone
    assert len({tuple(tokens) for tokens in alone.values()}) > 16, "the outputs must differ to mean anything"


def test_preemption_gives_the_same_tokens_and_everyone_finishes() -> None:
    prompts = tiny.prompts(8, longest=100)
    alone = one_by_one(prompts, max_tokens=80)
    tight = tiny.engine(pages=6)
    for i, prompt in enumerate(prompts):
        tight.add(tiny.request(f"r{i}", prompt, max_tokens=80))
    assert tiny.texts(tiny.drain(tight)) == alone
    assert tight.stats.preemptions > 0, "the test must preempt to mean anything"
    assert tight.stats.kv_pages_used == 0


def test_seeded_sampling_is_the_same_alone_batched_and_preempted() -> None:
    prompts = tiny.prompts(8, longest=100)
    sampling = {
        "temperature": 1.0,
        "top_p": 0.95,
        "max_tokens": 70,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
    }
    alone, tight = tiny.engine(), tiny.engine(pages=5)
    expected = {}
    for i, prompt in enumerate(prompts):
        alone.add(tiny.request(f"r{i}", prompt, seed=i, **sampling))
        expected |= tiny.texts(tiny.drain(alone))
        tight.add(tiny.request(f"r{i}", prompt, seed=i, **sampling))
    assert tiny.texts(tiny.drain(tight)) == expected
    assert tight.stats.preemptions > 0


def test_the_same_seed_repeats_and_another_differs() -> None:
    running = tiny.engine()
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        running.add(tiny.request(name, [1, 2, 3], temperature=1.5, seed=seed, max_tokens=30))
    texts = tiny.texts(tiny.drain(running))
    assert texts["a"] == texts["b"] != texts["c"]


def test_cancel_frees_the_pages_at_once_and_the_others_go_on_unchanged() -> None:
    prompts = tiny.prompts(2, longest=100)
    expected = one_by_one(prompts)["r1"]
    running = tiny.engine()
    for i, prompt in enumerate(prompts):
        running.add(tiny.request(f"r{i}", prompt))
    first = [output for output in running.step() if output.id == "r1"]
    used = running.stats.kv_pages_used
    cancelled = running.cancel("r0")
    assert cancelled is not None and (cancelled.finish, cancelled.token) == ("cancelled", None)
    assert running.stats.kv_pages_used < used
    assert [o.token for o in first] + tiny.texts(tiny.drain(running))["r1"] == expected
    assert running.cancel("r0") is None


def test_a_waiting_request_can_be_cancelled() -> None:
    running = tiny.engine(max_batch=1)
    running.add(tiny.request("a", [1]))
    running.add(tiny.request("b", [2]))
    running.step()
    assert running.stats.waiting == 1
    assert running.cancel("b") is not None
    assert running.stats.waiting == 0
    assert set(tiny.drain(running)) == {"a"}


def test_a_stop_id_is_reported_with_its_token() -> None:
    tokens = one_by_one([[5, 6, 7]])["r0"]
    stop = tokens[3]
    assert stop is not None
    running = tiny.engine()
    running.add(tiny.request("r0", [5, 6, 7], stop_ids=frozenset({stop})))
    outputs = tiny.drain(running)["r0"]
    end = tokens.index(stop) + 1
    assert [output.token for output in outputs] == tokens[:end]
    assert [output.finish for output in outputs] == [None] * (end - 1) + ["stop"]


def test_without_max_tokens_a_request_runs_up_to_the_context() -> None:
    running = tiny.engine(max_context=50)
    running.add(tiny.request("a", [1] * 20, max_tokens=None))
    outputs = tiny.drain(running)["a"]
    assert len(outputs) == 30
    assert outputs[-1].finish == "length"


@pytest.mark.parametrize(("length", "max_tokens", "requested"), [(100, None, 101), (60, 5, 65)])
def test_an_over_long_request_is_refused_with_numbers(length: int, max_tokens: int | None, requested: int) -> None:
    running = tiny.engine(max_context=64)
    with pytest.raises(ContextLengthError, match=f"64 tokens, but {requested} were requested: {length}") as caught:
        running.add(tiny.request("a", [1] * length, max_tokens=max_tokens))
    assert (caught.value.limit, caught.value.requested) == (64, requested)
    assert not running.has_work


def test_the_context_is_no_longer_than_the_kv_cache() -> None:
    assert tiny.engine(pages=3).context == 3 * 64
    assert tiny.engine(pages=64).context == 1024
    assert tiny.engine(pages=64, max_context=100).context == 100


def test_token_ids_outside_the_vocabulary_are_refused() -> None:
    running = tiny.engine()
    for bad in (-1, tiny.VOCABULARY, 2**40):
        with pytest.raises(UsageError, match=f"prompt has token id {bad}"):
            running.add(tiny.request("a", [1, bad]))
        with pytest.raises(UsageError, match=f"logit_bias has token id {bad}"):
            running.add(tiny.request("a", [1], logit_bias={bad: 1.0}))


def test_a_full_queue_refuses_and_an_id_in_use_is_refused() -> None:
    running = tiny.engine(max_queue=2)
    running.add(tiny.request("a", [1]))
    with pytest.raises(UsageError, match="already running"):
        running.add(tiny.request("a", [2]))
    running.add(tiny.request("b", [1]))
    with pytest.raises(OverloadedError, match="2 requests are waiting"):
        running.add(tiny.request("c", [1]))


class _Breaking:
    """An executor that fails, or gives NaN for one sequence's row."""

    steps_alone = 0

    def __init__(self, inner: object, *, fail: int = 0) -> None:
        self.inner, self.fail = inner, fail

    def run(self, step: Step) -> np.ndarray:
        if self.fail:
            self.fail -= 1
            raise MemoryError("no room")
        logits = self.inner.run(step)  # type: ignore[attr-defined]
        logits[0, 3] = np.nan
        return logits


def test_a_failing_step_ends_its_requests_with_a_reason_and_spares_those_waiting() -> None:
    running = tiny.engine(max_batch=1)
    running.executor = _Breaking(running.executor, fail=1)
    running.add(tiny.request("a", [1], max_tokens=1))
    running.add(tiny.request("b", [2], max_tokens=1))
    with pytest.raises(StepError) as caught:
        running.step()
    assert [(o.id, o.finish) for o in caught.value.outputs] == [("a", "error")]
    assert "no room" in (caught.value.outputs[0].error or "")
    assert running.stats.kv_pages_used == 0
    assert set(tiny.drain(running)) == {"b"}


def test_a_failing_draw_is_a_failing_step_and_not_the_end_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    running = tiny.engine()
    running.add(tiny.request("a", [1, 2]))
    with monkeypatch.context() as patched:
        patched.setattr("freehold.engine.runner.sample", lambda logits, states: 1 // 0)
        with pytest.raises(StepError) as caught:
            running.step()
    assert [(o.id, o.finish) for o in caught.value.outputs] == [("a", "error")]
    assert running.stats.kv_pages_used == 0
    running.add(tiny.request("b", [1, 2]))
    assert tiny.drain(running)


def test_logits_that_are_not_finite_end_only_their_own_request() -> None:
    running = tiny.engine()
    running.executor = _Breaking(running.executor)
    running.add(tiny.request("a", [1], max_tokens=1))
    running.add(tiny.request("b", [2], max_tokens=1))
    ends = {o.id: (o.finish, o.error) for o in running.step()}
    assert ends == {"a": ("error", NOT_FINITE), "b": ("length", None)}


def test_a_checkpoint_on_disk_runs_and_its_facts_are_true(tmp_path: Path) -> None:
    model = tiny.write(tmp_path / "model")
    running = Engine.load(model, EngineSettings(isa="reference", kv_memory_mb=1, max_context=200))
    running.add(tiny.request("a", [1, 2, 3]))
    assert len(tiny.drain(running)["a"]) == 12
    facts = running.facts
    assert (facts.architecture, facts.context, facts.vocabulary) == ("llama", 200, tiny.VOCABULARY)
    expected = sum(values.size for values in tiny.tensors(program_for(tiny.config())).values())
    assert (facts.parameters, facts.bits_per_weight, facts.weight_bytes) == (expected, 32.0, 4 * expected)


def test_chunked_and_whole_prefill_agree_in_their_logprobs() -> None:
    prompt = tiny.prompts(1, longest=200, seed=5)[0] * 3
    seen = []
    for chunk in (5, 512):
        running = tiny.engine(max_step_tokens=chunk)
        running.add(GenerateRequest("a", prompt, Sampling(temperature=0.0, max_tokens=4, logprobs=3)))
        seen.append([(o.token, o.logprob, o.top) for o in tiny.drain(running)["a"]])
    assert seen[0] == seen[1]
