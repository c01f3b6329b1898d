"""Licences recognised by their words."""

from __future__ import annotations

import pytest

from freehold.provenance import texts
from tests.provenance.shapes import LICENCES, MIT

APACHE = LICENCES.read_text()


def found(text: str) -> list[tuple[str, str]]:
    return [(match.licence, match.how) for match in texts.find(text)]


def test_a_licence_is_recognised_by_its_words_whatever_the_holder_and_the_wrapping():
    text = " ".join(MIT.format(year=1999, holder="Somebody Else & Sons").split())
    assert found(text) == [("MIT", "text")]
    assert texts.find(text)[0].score == 1.0


def test_markup_is_no_obstacle():
    page = (
        "<html><body><h1>Licence</h1>"
        + "".join(f"<p class='x'>{p}</p>" for p in APACHE.split("\n\n"))
        + "</body></html>"
    )
    assert found(page)[0] == ("Apache-2.0", "text")


def test_two_licences_in_one_file_are_both_found_in_their_order():
    assert found(MIT.format(year=1, holder="x") + "\n\n" + APACHE) == [("MIT", "text"), ("Apache-2.0", "text")]
    assert found(APACHE + "\n\n" + MIT.format(year=1, holder="x"))[:2] == [("Apache-2.0", "text"), ("MIT", "text")]


def test_a_licence_inside_a_longer_one_does_not_hide_it():
    """Kimi's licence is MIT's text and a paragraph more: the longer explains more of the text."""
    more = (
        "Our only modification part is that, if the Software (or any derivative works thereof) is used for any of your "
        "commercial products or services that have more than 100 million monthly active users, or more than 20 million US "
        'dollars (or equivalent in other currencies) in monthly revenue, you shall prominently display "Kimi K2" on the '
        "user interface of such product or service."
    )
    text = "Modified " + MIT.format(year=2025, holder="Moonshot AI") + more
    assert found(text)[0] == ("LicenseRef-Moonshot-Modified-MIT", "text")


def test_a_changed_text_is_similar_and_not_the_licence():
    words = APACHE.split()
    changed = " ".join(word for index, word in enumerate(words) if index % 14)
    assert found(changed)[0][1] == "similar"


@pytest.mark.parametrize("text", ["", "no licence here", "the quick brown fox " * 200, "\0\0\0", "<" * 1000])
def test_other_text_is_no_licence(text):
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("SPDX-License-Identifier: MIT", "MIT"),
        ("# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception", "Apache-2.0"),
        ("The models are under the Creative Commons Attribution-Share-Alike License 3.0", "CC-BY-SA-3.0"),
        ("see https://creativecommons.org/licenses/by-nc/4.0/", "CC-BY-NC-4.0"),
        ("Licensed under the Apache License, Version 2.0 (the License)", "Apache-2.0"),
        ("subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms", "LicenseRef-Gemma"),
        ("data under CC BY-SA 4.0", "CC-BY-SA-4.0"),
    ],
)
def test_tags_links_and_names_are_found(text, licence):
    assert [match.licence for match in texts.find(text)] == [licence]


def test_a_site_footers_licence_of_the_page_is_not_the_works():
    footer = (
        "Except as otherwise noted, the content of this page is licensed under the "
        "<a href='https://creativecommons.org/licenses/by/4.0/'>Creative Commons Attribution 4.0 License</a>, and code "
        "samples are licensed under the <a href='https://www.apache.org/licenses/LICENSE-2.0'>Apache 2.0 License</a>."
    )
    assert found(f"<p>{footer}</p>") == []


def test_every_encoded_licence_with_a_text_is_recognised_from_its_own_fingerprint():
    known = texts.known_texts()
    models = {key for key in known if key.startswith("LicenseRef-")}
    assert {"LicenseRef-Gemma", "LicenseRef-Llama-3.1", "LicenseRef-DeepSeek-1.0", "LicenseRef-Qwen-2024"} <= models
    assert len(known) > 600


def test_the_fingerprint_of_a_text_holds_all_of_it_and_no_words():
    mark = texts.fingerprint("X", "x", "Permissive", APACHE)
    assert set(texts.shingles(APACHE)) >= {int.from_bytes(mark.hashes[i : i + 4], "little") for i in range(0, 40, 4)}
    assert b"Apache" not in mark.hashes
