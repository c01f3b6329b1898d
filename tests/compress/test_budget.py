"""Budgets: spent where they save most, never overspent, and every choice says why."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.compress.budget import Offer, spend
from freehold.compress.plan import Scheme
from freehold.compress.planfile import Decision, format_plan, parse_scheme, read_plan
from freehold.errors import UsageError

OFFERS = {
    "a": [Offer("int4", 100, 1.0), Offer("int8", 200, 0.1), Offer("bf16", 400, 0.0)],
    "b": [Offer("int4", 100, 0.2), Offer("int8", 200, 0.1), Offer("bf16", 400, 0.0)],
}


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [(200, "int4 int4"), (299, "int4 int4"), (300, "int8 int4"), (400, "int8 int8"), (800, "bf16 bf16")],
)
def test_bytes_go_where_they_save_most(budget: int, chosen: str) -> None:
    found = spend(OFFERS, budget)
    assert " ".join(found[group].offer.text for group in "ab") == chosen


def test_a_choice_says_what_it_costs_what_it_saved_and_what_the_next_would_save() -> None:
    reason = spend(OFFERS, 300)["a"].reason
    assert "0.10000 nats" in reason
    assert "0.90000 less than int4 for 100 bytes" in reason
    assert "bf16 would save only 0.10000 for 200 bytes" in reason


def test_a_budget_below_the_smallest_formats_is_refused() -> None:
    with pytest.raises(UsageError, match=r"199 bytes .* below the 200"):
        spend(OFFERS, 199)


def test_what_is_left_buys_an_offer_that_no_hull_has() -> None:
    given_ = {"a": [Offer("small", 10, 1.0), Offer("between", 15, 0.9), Offer("large", 30, 0.0)]}
    found = spend(given_, 16)["a"]
    assert found.offer.text == "between"
    assert "0.10000 less than small for 5 bytes; large would save only 0.90000 for 15 bytes" in found.reason


offers = st.lists(
    st.builds(Offer, st.just("x"), st.integers(1, 40), st.floats(0, 1)),
    min_size=1,
    max_size=4,
    unique_by=lambda o: o.bytes,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), offers, min_size=1), st.integers(1, 160))
def test_it_never_overspends_and_is_near_the_best_there_is(given_: dict[str, list[Offer]], budget: int) -> None:
    smallest = sum(min(o.bytes for o in group) for group in given_.values())
    if smallest > budget:
        with pytest.raises(UsageError):
            spend(given_, budget)
        return
    found = spend(given_, budget)
    assert sum(choice.offer.bytes for choice in found.values()) <= budget
    combinations = itertools.product(*given_.values())
    best = min(sum(o.cost for o in mix) for mix in combinations if sum(o.bytes for o in mix) <= budget)
    largest = max(o.cost for group in given_.values() for o in group)
    assert sum(choice.offer.cost for choice in found.values()) <= best + largest + 1e-9  # one step short at most


@pytest.mark.parametrize(
    "text", ["int3 g32", "int4 g32", "int4 g128 asymmetric", "int5 g64", "int6 g128", "int8 per row", "int8 g64"]
)
def test_formats_are_read_as_they_are_written(text: str) -> None:
    scheme = parse_scheme(text)
    assert scheme is not None
    assert scheme.text == text


@pytest.mark.parametrize("text", ["int2 g32", "int7 g32", "int4", "int4 g48", "fp8", "", "int4 g32 "])
def test_a_format_that_is_none_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_scheme(text)
    assert "int4 g64 asymmetric" in str(caught.value.hint)


def test_a_plan_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    decisions = {
        "model.layers.0.self_attn.q_proj.weight": Decision(Scheme(4, 32, True, True), "because", "layers.0.qkv", 0.1),
        "lm_head.weight": Decision(None, "kept", "lm_head", 0.0),
    }
    path = tmp_path / "plan.toml"
    path.write_text(format_plan(decisions, "a heading\nof two lines"))
    assert "# layers.0.qkv: because" in path.read_text()
    assert {name: d.scheme for name, d in read_plan(path).items()} == {n: d.scheme for n, d in decisions.items()}


@pytest.mark.parametrize("text", ["[tensors", "x = 1", "[tensors]\na = 4", "[tensors]\na = 'int9 g32'"])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(UsageError):
        read_plan(path)
