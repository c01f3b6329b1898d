"""Trials, chance, and what makes a status."""

from __future__ import annotations

import pytest

from freehold.certify.verdict import Trial, tail, weigh, wilson

GOOD, BAD = Trial(True), Trial(False, "a/b", "$.x", "1", "2")


def test_every_trial_must_be_good_unless_chance_plays_a_part() -> None:
    assert weigh("A.1", [GOOD, GOOD], must=True, chance=None).status == "PASS"
    verdict = weigh("A.1", [GOOD, BAD], must=True, chance=None)
    assert (verdict.status, verdict.k, verdict.n, verdict.trials) == ("FAIL", 1, 2, (BAD,))
    assert weigh("A.1", [GOOD, BAD], must=False, chance=None).status == "WARN"


def test_one_drawn_word_that_comes_back_is_no_chance_but_two_right_guesses_of_five_are() -> None:
    assert weigh("A.1", [GOOD, *[BAD] * 4], must=True, chance=1e-6).status == "PASS"
    assert weigh("A.1", [*[GOOD] * 2, *[BAD] * 3], must=True, chance=0.2).status == "FAIL"
    assert weigh("A.1", [*[GOOD] * 4, BAD], must=True, chance=0.2).status == "PASS"
    assert weigh("A.1", [BAD] * 5, must=True, chance=1e-6).status == "FAIL"


def test_nothing_to_look_at_is_untestable_and_never_passes() -> None:
    assert weigh("A.1", [], must=True, chance=None).status == "UNTESTABLE"
    assert weigh("A.1", [], must=False, chance=None).status == "WARN"


def test_the_tail_and_the_interval_are_those_of_the_textbook() -> None:
    assert tail(5, 5, 0.5) == pytest.approx(1 / 32) and tail(0, 5, 0.5) == pytest.approx(1)
    # Newcombe 1998 (https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), table I
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
