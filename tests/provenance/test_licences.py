"""From labels to identifiers, and what is known of each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.provenance.licences import alternatives, compatible, identifiers, lookup, normalize, same_text


@pytest.mark.parametrize(
    ("label", "expression"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("Apache Software License", "Apache-2.0"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("MIT License", "MIT"),
        ("gemma", "LicenseRef-Gemma"),
        ("llama3.1", "LicenseRef-Llama-3.1"),
        ("bigcode-openrail-m", "LicenseRef-BigCode-OpenRAIL-M"),
        ("cc-by-nc-4.0", "CC-BY-NC-4.0"),
        ("GPL-3.0+", "GPL-3.0-or-later"),
        ("MIT OR Apache-2.0", "MIT OR Apache-2.0"),
        ("(mit AND cc-by-4.0) OR gpl-3.0", "(MIT AND CC-BY-4.0) OR GPL-3.0-or-later"),
        ("MIT AND Homemade", "MIT AND LicenseRef-unknown"),
    ],
)
def test_labels_become_expressions(label, expression):
    assert normalize(label) == expression


@pytest.mark.parametrize(
    "label", ["", None, "other", "unknown", "Proprietary", "Homemade", "see LICENSE file", "(", "MIT " * 200]
)
def test_labels_that_declare_nothing_known_are_none(label):
    assert normalize(label) is None


@given(st.text(max_size=60))
def test_no_label_breaks_anything(label):
    expression = normalize(label)
    if expression is not None:
        assert alternatives(expression)
        assert identifiers(expression)


def test_alternatives_are_what_applies_together():
    assert alternatives("A AND (B OR C)") == [("A", "B"), ("A", "C")]


def test_a_licence_nobody_encoded_is_known_by_its_class():
    assert lookup("Elastic-2.0").cls == "restricted"
    assert lookup("curl").cls == "permissive"
    assert lookup("LicenseRef-homemade").traits == {"unknown": "no entry in the knowledge base"}


def test_ported_versions_have_the_traits_of_their_family():
    assert lookup("CC-BY-SA-3.0-DE").traits == lookup("CC-BY-SA-3.0").traits
    assert lookup("CC-BY-NC-ND-2.0").traits.keys() == {"nc", "nd"}


def test_share_alike_goes_to_later_versions_and_not_back():
    assert compatible("CC-BY-SA-3.0", "CC-BY-SA-4.0")
    assert not compatible("CC-BY-SA-4.0", "CC-BY-SA-3.0")
    assert compatible("CC-BY-SA-4.0", "GPL-3.0-only")
    assert not compatible("GPL-3.0-only", "CC-BY-SA-4.0")


def test_only_and_or_later_are_one_text():
    assert same_text("GPL-2.0-only", "GPL-2.0-or-later")
    assert not same_text("GPL-2.0-only", "GPL-3.0-only")
