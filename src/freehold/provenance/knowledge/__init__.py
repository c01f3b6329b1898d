"""What is known of licences, providers' terms, model families and data sets: YAML files, checked against a schema.

Everything is read offline and once. An entry states what its document says, with clause and date; what nobody is sure of
is marked contested and ends in `escalate`. Knows no artefacts and judges nothing: `rules` does.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import yaml

from freehold.errors import FormatError

PURPOSES = ("commercial", "research", "train", "redistribute")
REACHES = ("own", "part", "adapted", "trained", "output", "trained-on-output", "beyond")
CLASSES = (
    "public-domain",
    "permissive",
    "weak-copyleft",
    "copyleft",
    "share-alike",
    "non-commercial",
    "no-derivatives",
    "use-restricted",
    "provider-terms",
    "restricted",
    "unknown",
)
FREE_CLASSES = ("public-domain", "permissive")
FILES = ("licences", "providers", "families", "datasets", "rules")


class Citation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The document an entry rests on; `date` is the document's."""

    document: str
    url: str
    date: dt.date


class Duty(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"on": "for"}):
    """Something to do, for the purposes `on`, where the subject stands to the licensed thing in one of `reach`."""

    kind: str
    clause: str
    text: str
    on: tuple[str, ...] = ("redistribute",)
    reach: tuple[str, ...] = ("own", "part", "adapted")


class Licence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"cls": "class"}):
    """A licence as traits and duties.

    Attributes:
        id: SPDX identifier or LicenseRef.
        cls: one of CLASSES.
        traits: what rules test, each with its clause.
        duties: what to do and when.
        labels, named, covers: regular expressions for declared labels, for names in texts, for other identifiers.
        compatible: identifiers under which adaptations may be licensed.
        prefix: what the name of a derived model must begin with.
        statement: the attribution notice it asks for, word for word.
        successors: names of models that outputs may improve in spite of `outputs-barred`.
    """

    id: str
    name: str
    cls: str
    cite: Citation
    traits: dict[str, str] = {}
    duties: tuple[Duty, ...] = ()
    labels: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    covers: str = ""
    compatible: tuple[str, ...] = ()
    prefix: str = ""
    successors: str = ""
    statement: str = ""
    note: str = ""


class Version(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"since": "from"}):
    """One version of a provider's terms, in force from `since` to `until` (None: the last one known)."""

    id: str
    document: str
    url: str
    since: dt.date
    checked: dt.date
    says: str
    traits: dict[str, str] = {}
    duties: tuple[Duty, ...] = ()
    until: dt.date | None = None


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A provider, and its terms by date."""

    provider: str
    name: str
    terms: tuple[Version, ...]
    aliases: tuple[str, ...] = ()


class Family(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Models under the same terms; `base` where they are made from another family, `outputs` where a card frees them."""

    family: str
    match: str
    licence: str
    cite: Citation
    base: str = ""
    outputs: str = ""


class DataSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A data set that cards name."""

    dataset: str
    match: str
    cite: Citation
    licence: str | None = None
    generated_by: str = ""
    at: dt.date | None = None
    contested: str = ""


class When(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Conditions; all that are given must hold, and of a tuple any member will do."""

    purpose: tuple[str, ...] = ()
    trait: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    reach: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    relation: tuple[str, ...] = ()
    basis: bool | None = None


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"with_": "with"}):
    """What follows when conditions hold; `with` are conditions on a second licence that was merged with the first."""

    when: When
    verdict: str
    because: str
    with_: When | None = None


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of R1 to R12: its cases, the kinds of duties it explains, and what it rests on."""

    id: str
    title: str
    cite: str
    cases: tuple[Case, ...] = ()
    duties: tuple[str, ...] = ()


class Knowledge(msgspec.Struct, frozen=True):
    """Everything that is known, by identifier where there is one."""

    licences: Mapping[str, Licence]
    providers: tuple[Provider, ...]
    families: tuple[Family, ...]
    datasets: tuple[DataSet, ...]
    rules: tuple[Rule, ...]


_TYPES: dict[str, Any] = {
    "licences": tuple[Licence, ...],
    "providers": tuple[Provider, ...],
    "families": tuple[Family, ...],
    "datasets": tuple[DataSet, ...],
    "rules": tuple[Rule, ...],
}


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same loader in C is ten times as fast


@functools.cache
def knowledge() -> Knowledge:
    """What comes with this version."""
    folder = resources.files(__name__)
    return read({name: folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8") for name in FILES})


def load(folder: Path) -> Knowledge:
    """A knowledge base from a directory with the five YAML files.

    Raises:
        FormatError: a file is missing, or an entry does not fit the schema; names file and field.
    """
    try:
        return read({name: (folder / f"{name}.yaml").read_text(encoding="utf-8") for name in FILES})
    except OSError as error:
        raise FormatError(f"can't read {error.filename}: {error.strerror}") from None


def read(texts: Mapping[str, str]) -> Knowledge:
    """Parse and check; see `load`."""
    parts = {name: _entries(name, text) for name, text in texts.items()}
    licences = {licence.id: licence for licence in parts["licences"]}
    if len(licences) != len(parts["licences"]):
        raise FormatError("licences.yaml: an id appears twice")
    base = Knowledge(licences, parts["providers"], parts["families"], parts["datasets"], parts["rules"])
    _check(base)
    return base


def _entries(name: str, text: str) -> Any:
    try:
        return msgspec.convert(yaml.load(text, Loader=_LOADER), _TYPES[name])  # noqa: S506 - both are safe loaders
    except yaml.YAMLError as error:
        raise FormatError(f"{name}.yaml is no YAML: {' '.join(str(error).split())}") from None
    except msgspec.ValidationError as error:
        raise FormatError(f"{name}.yaml: {error}", hint="docs/licences.md describes the fields") from None


def _check(base: Knowledge) -> None:
    """What a schema of fields can't say."""
    for licence in base.licences.values():
        _member(f"licences.yaml: {licence.id}: class", licence.cls, CLASSES)
        for pattern in (*licence.labels, *licence.named, licence.covers, licence.successors):
            _pattern(f"licences.yaml: {licence.id}", pattern)
        _duties(f"licences.yaml: {licence.id}", licence.duties)
    for provider in base.providers:
        _ordered(provider)
        for alias in provider.aliases:
            _pattern(f"providers.yaml: {provider.provider}", alias)
    for family in base.families:
        _pattern(f"families.yaml: {family.family}", family.match)
        if family.licence not in base.licences:
            raise FormatError(f"families.yaml: {family.family}: licences.yaml has no {family.licence}")
    for entry in base.datasets:
        _pattern(f"datasets.yaml: {entry.dataset}", entry.match)
    for rule in base.rules:
        for case in rule.cases:
            where = f"rules.yaml: {rule.id}"
            _member(f"{where}: verdict", case.verdict, ("allow", "escalate", "deny"))
            for conditions in filter(None, (case.when, case.with_)):
                for purpose in conditions.purpose:
                    _member(f"{where}: purpose", purpose, PURPOSES)
                for reach in conditions.reach:
                    _member(f"{where}: reach", reach, REACHES)


def _duties(where: str, duties: tuple[Duty, ...]) -> None:
    for duty in duties:
        for purpose in duty.on:
            _member(f"{where}: duty {duty.kind}: on", purpose, PURPOSES)
        for reach in duty.reach:
            _member(f"{where}: duty {duty.kind}: reach", reach, REACHES)


def _ordered(provider: Provider) -> None:
    """No two versions on one day, none that ends before it begins."""
    where = f"providers.yaml: {provider.provider}"
    for earlier, later in zip(provider.terms, provider.terms[1:], strict=False):
        if earlier.until is None or earlier.until >= later.since:
            raise FormatError(f"{where}: {earlier.id} is still in force when {later.id} begins")
    for version in provider.terms:
        if version.until is not None and version.until < version.since:
            raise FormatError(f"{where}: {version.id} ends before it begins")
        _duties(f"{where}: {version.id}", version.duties)


def _member(where: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise FormatError(f"{where}: expected one of {', '.join(allowed)}, found {value!r}")


def _pattern(where: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise FormatError(f"{where}: {pattern!r} is no regular expression: {error}") from None
