"""The requirement files: complete, checked, frozen."""

from __future__ import annotations

import copy
from importlib import resources

import jsonschema
import pytest
import yaml

from freehold.certify import requirements
from freehold.certify import suite as suite
from freehold.certify.declaration import CAPABILITIES
from freehold.certify.evidence import CHECKS, SCENARIOS
from freehold.errors import FormatError

FOUND = yaml.safe_load(resources.files(requirements).joinpath(f"{requirements.CURRENT}.yaml").read_bytes())


def test_each_requirement_has_its_check_and_each_check_its_requirement() -> None:
    ids = [requirement.id for requirement in requirements.load().requirements]
    assert len(ids) >= 120 and set(ids) == set(CHECKS)


def test_every_capability_that_is_named_can_be_declared() -> None:
    named = {requirement.capability for requirement in requirements.load().requirements} - {""}
    named |= {scenario.capability for scenario in SCENARIOS.values()} - {""}
    assert named == set(CAPABILITIES)


def test_a_scenario_runs_at_the_level_of_the_first_requirement_that_could_need_it() -> None:
    assert {scenario.level for scenario in SCENARIOS.values()} == {1, 2, 3, 4}


@pytest.mark.parametrize(
    "name", sorted(yaml.safe_load(resources.files(requirements).joinpath("shapes.yaml").read_bytes()))
)
def test_the_shapes_are_json_schemas(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(requirements.shape(name))


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [("level", 7, "requirements[0].level"), ("id", "x", "requirements[0].id"), ("spec", None, "requirements[0].spec")],
)
def test_a_broken_entry_is_named(field: str, value: object, told: str) -> None:
    broken = copy.deepcopy(FOUND)
    broken["requirements"][0][field] = value
    with pytest.raises(FormatError, match="requirements") as error:
        requirements.read(broken, "")
    assert told in error.value.message


def test_an_id_may_be_there_once_only_and_an_unknown_revision_is_an_error() -> None:
    twice = copy.deepcopy(FOUND)
    twice["requirements"].append(twice["requirements"][0])
    with pytest.raises(FormatError, match=r"TR\.1 more than once"):
        requirements.read(twice, "")
    with pytest.raises(FormatError, match="no revision"):
        requirements.load("../2026-11")
