"""What a server says of itself before the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.certify import declaration
from freehold.certify.declaration import BY_DEFAULT, CAPABILITIES, NEED_MORE, Declaration
from freehold.errors import UsageError


def test_a_file_is_read_with_its_lists(tmp_path: Path) -> None:
    file = tmp_path / "d.yaml"
    file.write_text("model: m\ncapabilities: [tools, context]\ncontext: 4096\nprompt_tokens: [[Hello, 1], [Hi, 1]]\n")
    found = declaration.load(file)
    assert (found.model, found.capabilities, found.context) == ("m", ("tools", "context"), 4096)
    assert found.prompt_tokens == (("Hello", 1), ("Hi", 1))
    assert declaration.read(found.record()) == found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[", "expected YAML"), ("- a", "expected a mapping, found list"), ("modell: x", "no field 'modell'"),
        ("has: x", "no field 'has'"), ("model: 7", "model: expected str, found 7"), ("context: true", "expected int"),
        ("dialects: []", "at least one dialect"), ("dialects: [x]", "no dialect 'x'"),
        ("capabilities: [magic]", "no capability 'magic'"), ("capabilities: [context]", "context needs the field context"),
        ("anthropic_version: maybe", "expected required or optional"), ("prompt_tokens: [[a]]", "pairs of text and number"),
        ("model: !!python/object/apply:os.system [id]", "expected YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "d.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as error:
        declaration.load(file)
    assert told in error.value.message


def test_what_nobody_can_guess_is_not_declared_by_default() -> None:
    assert set(BY_DEFAULT) == set(CAPABILITIES) - set(NEED_MORE)
    assert not Declaration().without(("tools",)).has("tools")
    with pytest.raises(UsageError, match="can't read"):
        declaration.load(Path("/no/such/file"))
