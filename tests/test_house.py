"""The house itself: what the pages promise, what the layers forbid, what must not be in any file."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

import freehold
from freehold.cli import VERBS, app, reference
from freehold.settings import SECTIONS, TABLES, RouterSettings

ROOT = Path(__file__).parent.parent
FORBIDDEN = re.compile(
    r"/work/(main|shared)|\.\./shared|/tmp/(models|wheels|oracle|tasks)|https?://(pypi\.org|download\.pytorch)"
)
PLACEHOLDER = re.compile(r"\b(TODO|FIXME|XXX)\b(?!-MEASURE)")


def tracked() -> list[Path]:
    """Text files under version control, or all of the source tree when this is not a repository."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        files = [ROOT / line for line in listed.stdout.splitlines()]
    else:
        files = [path for top in ("src", "tests", "docs", "bench", "tools") for path in (ROOT / top).rglob("*")]
    binary = {".npz", ".safetensors", ".gguf", ".so", ".bin"}
    return [path for path in files if path.is_file() and path.suffix not in binary and "__pycache__" not in path.parts]


def test_no_file_names_a_place_on_somebodys_machine_or_a_registry() -> None:
    found = {}
    for path in tracked():
        if path != Path(__file__) and (match := FORBIDDEN.search(path.read_text(encoding="utf-8", errors="replace"))):
            found[str(path.relative_to(ROOT))] = match[0]
    assert found == {}


def test_no_product_file_is_left_unfinished() -> None:
    product = [path for path in tracked() if path.is_relative_to(ROOT / "src")]
    assert product
    assert [
        str(path) for path in product if PLACEHOLDER.search(path.read_text(encoding="utf-8", errors="replace"))
    ] == []


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == freehold.__version__
    assert f"## {freehold.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def commands(text: str) -> set[tuple[str, ...]]:
    """The `freehold ...` commands of a page, as words."""
    return {tuple(words.split()) for words in re.findall(r"(?:^\$ |`)freehold +([^`\n#]+)", text, flags=re.MULTILINE)}


GENERATED = "reference.md"
WRITTEN = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md") if page.name != GENERATED)


@pytest.mark.parametrize("page", ["README.md", *WRITTEN])
def test_every_command_on_a_page_exists_with_its_flags(page: str) -> None:
    for words in commands((ROOT / page).read_text()):
        if words[0] in ("...", "VERB") or words[0].startswith(("-", "[")):
            continue
        assert words[0] in VERBS, f"{page}: freehold {' '.join(words)}"
        command = app.get_command(click.Context(app), words[0])
        if isinstance(command, click.Group) and len(words) > 1:
            command = command.commands[words[1]]
        assert command is not None
        known = {flag for parameter in command.params for flag in parameter.opts} | {"--help", "-h"}
        flags = {word.split("=")[0] for word in words if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
        assert flags <= known, f"{page}: freehold {' '.join(words)}"


def test_the_readme_shows_every_verb_of_the_main_job() -> None:
    shown = {words[0] for words in commands((ROOT / "README.md").read_text())}
    assert set(VERBS) - {"completion"} <= shown


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_on_a_page_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^\$ |`)make ([a-z]+)", (ROOT / page).read_text(), flags=re.MULTILINE))
    assert named and named <= targets


@pytest.mark.parametrize(
    "page", sorted(str(p.relative_to(ROOT)) for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
)
def test_every_link_on_a_page_leads_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text())
    missing = [link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()]
    assert missing == []


def test_the_reference_is_what_the_code_says() -> None:
    assert (ROOT / "docs/reference.md").read_text() == reference.page(), "run `make reference`"


@pytest.mark.parametrize(("table", "cls"), [*SECTIONS.items(), *TABLES.items()])
def test_the_reference_has_every_setting_of_every_table(table: str, cls: type[Any]) -> None:
    title = f"### [[{table}]]" if table in TABLES else f"### [{table}]"
    section = reference.page().split(title + "\n")[1].split("\n### ")[0]
    own = [RouterSettings if item.name == "router" else item.name for item in dataclasses.fields(cls)]
    names = [name for name in own if isinstance(name, str)]
    if RouterSettings in own:
        names += [item.name for item in dataclasses.fields(RouterSettings) if item.name != "reload_seconds"]
    for name in names:
        assert section.count(f"| `{name}` |") == 1


def test_every_room_has_its_page_and_its_layer() -> None:
    rooms = {path.parent.name for path in (ROOT / "src/freehold").glob("*/__init__.py")}
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = next(c for c in config["tool"]["importlinter"]["contracts"] if c["type"] == "layers")["layers"]
    layered = {name.strip().removeprefix("freehold.") for layer in layers for name in layer.split("|")}
    assert rooms <= layered
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"cli"}  # cli's page is reference.md
    assert rooms <= pages
