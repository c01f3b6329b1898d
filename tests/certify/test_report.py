"""What a judgement looks like, and that a failure says how to repeat it."""

from __future__ import annotations

import asyncio
import json
import shlex
from xml.etree import ElementTree

import pytest

from freehold.certify import Certificate, make, report, selftest
from freehold.certify.reference.faulty import FAULTS
from freehold.signing import Identity

from .conftest import DAY, URL


@pytest.fixture(scope="module")
def failed(identity: Identity) -> Certificate:
    """The certificate of a server that ignores stop strings."""
    return make(asyncio.run(selftest.observe(FAULTS["stop strings are ignored"], level=1)), URL, identity, began=DAY)


def test_a_failure_says_what_was_expected_what_was_seen_where_and_how_to_repeat_it(failed: Certificate) -> None:
    (found,) = report.summary(failed)["failures"]
    assert found["id"] == "CC.8" and found["spec"].startswith("OpenAI API reference")
    trial = found["trials"][0]
    assert trial["path"] == "$.choices[0].message.content" and trial["expected"].startswith("nothing from")
    words = shlex.split(trial["curl"])
    assert words[:4] == ["curl", "-sN", "-X", "POST"] and words[4] == URL + "/chat/completions"
    assert json.loads(words[-1]) == failed.run.exchanges["chat.stop/stopped"].call.json
    assert "authorization: Bearer $KEY" in words
    lines = "\n".join(report.explained(failed))
    assert "CC.8 FAIL 1/2" in lines and "  repeat   curl " in lines


def test_all_forms_tell_of_the_same_failure(failed: Certificate) -> None:
    suite = ElementTree.fromstring(report.as_junit(failed))  # noqa: S314  (our own text)
    assert suite.get("failures") == "1" and suite.get("tests") == str(len(failed.judgement.verdicts))
    assert [case.get("name", "")[:4] for case in suite if case.find("failure") is not None] == ["CC.8"]
    assert "## CC.8 FAIL" in report.as_markdown(failed)
    assert report.as_github(failed).startswith("::error title=CC.8::") and "no level" in report.as_github(failed)
    assert json.loads(report.as_json(failed))["blocking"] == ["CC.8"]


def test_the_badge_says_the_level_and_no_more(certificate: Certificate, failed: Certificate) -> None:
    for made, told in ((certificate, "L3 Interop"), (failed, "no level")):
        svg = ElementTree.fromstring(report.as_badge(made))  # noqa: S314  (our own text)
        assert [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")] == ["interoperability", told]


def test_a_good_certificate_has_nothing_to_explain(certificate: Certificate) -> None:
    assert list(report.explained(certificate)) == []
    assert report.headline(certificate).startswith("L3 Interop (chat, responses, messages")
    assert sum(sum(v for k, v in group.items() if k != "group") for group in report.groups(certificate)) == len(
        certificate.judgement.verdicts
    )
