"""Records as W3C PROV: entities, activities, agents and how they hang together, written as PROV-JSON.

https://www.w3.org/TR/prov-dm/ and https://www.w3.org/submissions/prov-json/. A record names one activity; what it
used and made are entities; who did it are agents. Parents become derivations between answers. Knows no database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

NAMESPACE = "https://freehold.invalid/prov#"  # RFC 2606: a name that nobody can own


@dataclass(frozen=True, slots=True)
class Entity:
    """A thing: a prompt, an answer, a model, a licence text, a data set."""

    id: str
    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Agent:
    """Who is answerable: a program, a key, a provider."""

    id: str
    kind: str


@dataclass(frozen=True, slots=True)
class Activity:
    """What was done; times in microseconds since 1970."""

    id: str
    kind: str
    started: int
    ended: int


@dataclass(frozen=True, slots=True)
class Statement:
    """One record: an activity with what it used, what it made, for whom, and from which earlier things."""

    activity: Activity
    agents: tuple[Agent, ...]
    used: tuple[Entity, ...]
    generated: tuple[Entity, ...]
    derived: tuple[tuple[str, str], ...] = ()  # (made, from)


def statement(body: Mapping[str, Any]) -> Statement:
    """A record's body as PROV."""
    return _exchange(body) if body["kind"] == "exchange" else _deed(body)


def _exchange(body: Mapping[str, Any]) -> Statement:
    id = body["id"]
    prompt = Entity(f"{id}/prompt", "prompt", {"hash": body["prompt"]["hash"]})
    answer = Entity(f"{id}/answer", "answer", {"hash": body["answer"]["hash"], "training": body["training"]["state"]})
    used, agents = (
        [prompt],
        [Agent(name, "software" if name.startswith("freehold") else "key") for name in body["agents"]],
    )
    for who in body["served_by"]:
        if "provider" in who:
            agents.append(Agent(f"provider {who['provider'] or who['backend']}", "provider"))
        model = f"sha256:{who['weights']}" if who.get("weights") else f"model {who['backend']}/{who['model']}"
        used.append(Entity(model, "model", {"name": who["model"]}))
        if who["terms"]["digest"]:
            used.append(Entity(f"sha256:{who['terms']['digest']}", "terms"))
    derived = [(answer.id, prompt.id), *((prompt.id, f"{parent}/answer") for parent in body["parents"])]
    activity = Activity(id, body["activity"], body["at"], body["ended"])
    return Statement(activity, tuple(agents), tuple(used), (answer,), tuple(derived))


def _deed(body: Mapping[str, Any]) -> Statement:
    used, generated = (tuple(_entity(thing) for thing in body[key]) for key in ("used", "generated"))
    derived = tuple((made.id, source.id) for made in generated for source in used)
    agents = tuple(Agent(name, "software") for name in body["agents"])
    return Statement(Activity(body["id"], body["kind"], body["at"], body["at"]), agents, used, generated, derived)


def _entity(thing: Mapping[str, Any]) -> Entity:
    facts = {key: value for key, value in thing.items() if key not in ("id", "kind")}
    return Entity(str(thing["id"]), str(thing.get("kind", "thing")), facts)


def prov_json(statements: Iterable[Statement]) -> dict[str, Any]:
    """A PROV-JSON document."""
    found: dict[str, Any] = {
        "prefix": {"freehold": NAMESPACE}, "entity": {}, "activity": {}, "agent": {}, "used": {},
        "wasGeneratedBy": {}, "wasAssociatedWith": {}, "wasDerivedFrom": {},
    }  # fmt: skip
    for each in statements:
        activity = _name(each.activity.id)
        found["activity"][activity] = {
            "prov:type": each.activity.kind,
            "prov:startTime": time_of(each.activity.started),
            "prov:endTime": time_of(each.activity.ended),
        }
        for entity in (*each.used, *each.generated):
            facts = {f"freehold:{key}": str(value) for key, value in entity.facts.items()}
            found["entity"][_name(entity.id)] = {"prov:type": entity.kind} | facts
        for agent in each.agents:
            found["agent"][_name(agent.id)] = {"prov:type": agent.kind}
            _relate(found["wasAssociatedWith"], {"prov:activity": activity, "prov:agent": _name(agent.id)})
        for entity in each.used:
            _relate(found["used"], {"prov:activity": activity, "prov:entity": _name(entity.id)})
        for entity in each.generated:
            _relate(found["wasGeneratedBy"], {"prov:entity": _name(entity.id), "prov:activity": activity})
        for made, source in each.derived:
            found["entity"].setdefault(_name(source), {})
            pair = {"prov:generatedEntity": _name(made), "prov:usedEntity": _name(source)}
            _relate(found["wasDerivedFrom"], pair)
    return found


def _relate(relations: dict[str, Any], pair: dict[str, str]) -> None:
    relations[f"_:r{len(relations)}"] = pair


def _name(id: str) -> str:
    return "freehold:" + id.replace(" ", "_")


def time_of(micros: int) -> str:
    """Microseconds since 1970 in ISO 8601, UTC."""
    return datetime.fromtimestamp(micros / 1_000_000, UTC).isoformat()
