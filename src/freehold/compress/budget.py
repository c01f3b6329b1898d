"""Spending a budget of bits: for each group the format that buys the most quality for the whole model's bytes.

Groups start at their smallest format. Step by step the upgrade that saves the most nats per byte is taken, along each
group's lower convex hull, until the next one no longer fits; smaller ones that still fit follow. What is left then goes,
offer by offer, to whichever saves the most of those that fit, on a hull or not. Knows numbers and names, no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from freehold.errors import UsageError


@dataclass(frozen=True, slots=True)
class Offer:
    """A format for one group: its name, the bytes it takes and the nats of KL divergence it is predicted to cost."""

    text: str
    bytes: int
    cost: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for a group, and why."""

    offer: Offer
    reason: str


def spend(offers: Mapping[str, Sequence[Offer]], budget: int) -> dict[str, Choice]:
    """One offer for each group, within `budget` bytes in all.

    Raises:
        UsageError: even the smallest formats don't fit.
    """
    hulls = {group: _hull(given) for group, given in offers.items()}
    place = dict.fromkeys(hulls, 0)
    spent = sum(hull[0].bytes for hull in hulls.values())
    if spent > budget:
        raise UsageError(
            f"a budget of {budget:,} bytes for the quantized tensors is below the {spent:,} of their smallest formats",
            hint="give more --bits",
        )
    steps = sorted(
        ((_slope(hull[i], hull[i + 1]), group, i) for group, hull in hulls.items() for i in range(len(hull) - 1)),
        key=lambda step: (-step[0], step[1], step[2]),
    )
    for _, group, i in steps:
        more = hulls[group][i + 1].bytes - hulls[group][i].bytes
        if place[group] == i and spent + more <= budget:
            place[group] = i + 1
            spent += more
    chosen = {group: hull[place[group]] for group, hull in hulls.items()}
    _spend_rest(chosen, offers, budget - spent)
    return {group: Choice(offer, _reason(hulls[group], offer)) for group, offer in chosen.items()}


def _spend_rest(chosen: dict[str, Offer], offers: Mapping[str, Sequence[Offer]], left: int) -> None:
    """Change choices, in place, as long as one that fits saves anything: at most once a group and offer."""
    while True:
        fitting = [
            (chosen[group].cost - offer.cost, group, offer)
            for group, given in offers.items()
            for offer in given
            if offer.cost < chosen[group].cost and offer.bytes - chosen[group].bytes <= left
        ]
        if not fitting:
            return
        _, group, offer = max(fitting, key=lambda one: one[0])
        left -= offer.bytes - chosen[group].bytes
        chosen[group] = offer


def _hull(offers: Sequence[Offer]) -> list[Offer]:
    """The offers no mixture of others beats, from the smallest on."""
    hull: list[Offer] = []
    for offer in sorted(offers, key=lambda o: (o.bytes, o.cost)):
        if hull and offer.cost >= hull[-1].cost:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], offer):
            hull.pop()
        hull.append(offer)
    return hull


def _slope(small: Offer, large: Offer) -> float:
    return (small.cost - large.cost) / (large.bytes - small.bytes)


def _reason(hull: list[Offer], chosen: Offer) -> str:
    words = [f"predicted to cost {chosen.cost:.5f} nats"]
    smaller = [offer for offer in hull if offer.bytes < chosen.bytes]
    larger = [offer for offer in hull if offer.bytes > chosen.bytes]
    if smaller:
        saved, more = smaller[-1].cost - chosen.cost, chosen.bytes - smaller[-1].bytes
        words.append(f"{saved:.5f} less than {smaller[-1].text} for {more:,} bytes")
    if larger:
        saved, more = chosen.cost - larger[0].cost, larger[0].bytes - chosen.bytes
        words.append(f"{larger[0].text} would save only {saved:.5f} for {more:,} bytes")
    return "; ".join(words)
