"""The Model Openness Framework: our classes against those the published tool records for its own test data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from freehold.errors import FormatError
from freehold.provenance.bom import mof

VECTORS = yaml.safe_load((Path(__file__).parent.parent / "vectors/provenance/mof_expected.yaml").read_text())


def licences(parts: str) -> dict[str, str | None]:
    words = parts.split()
    pairs = zip(words[::2], words[1::2], strict=True)
    return {VECTORS["names"][key]: None if licence == "-" else licence for key, licence in pairs}


@pytest.mark.parametrize("release", VECTORS["releases"], ids=lambda release: f"release-{release['id']}")
def test_class_and_progress_are_those_of_the_published_tool(release):
    found = mof.classify(licences(release["parts"]), release["global"])
    assert found.level == release["class"]
    assert [found.progress[level] for level in (1, 2, 3)] == pytest.approx(release["progress"])


def test_all_of_the_tools_releases_are_here():
    assert [release["id"] for release in VECTORS["releases"]] == list(range(1, 28))


def test_a_release_file_is_read_with_its_global_licences(tmp_path):
    file = tmp_path / "release.yml"
    parts = [{"name": item.name} for item in mof.components()]
    release = {
        "name": "Everything",
        "license": {"distribution": {"name": "MIT", "path": "LICENSE"}},
        "components": parts,
    }
    file.write_text(yaml.safe_dump({"release": release}))
    page = json.loads(mof.render_release(str(file)))
    assert (page["class"], page["release"]) == (1, "Everything")


def test_what_keeps_a_release_from_the_next_class_is_said():
    found = mof.classify(licences(VECTORS["releases"][8]["parts"]), {})
    assert "not class 2: Training code: not released" in found.reasons


def test_a_file_that_is_no_release_is_refused(tmp_path):
    file = tmp_path / "other.yml"
    file.write_text("- just a list\n")
    with pytest.raises(FormatError, match="no release"):
        mof.render_release(str(file))
