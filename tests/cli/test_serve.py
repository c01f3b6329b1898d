"""`freehold serve`: which model it is told to serve."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from freehold import gateway
from freehold.cli.serve import command
from freehold.formats import store
from freehold.settings import Settings


@pytest.mark.parametrize("words", [["org/model"], ["--model", "org/model"], ["org/model", "--model", "other"]])
def test_the_model_may_be_named_as_a_flag_or_in_its_own_place(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    served: list[Settings] = []
    resolved: list[str] = []
    monkeypatch.setattr(gateway, "serve", served.append)
    monkeypatch.setattr(store, "resolve", lambda reference, progress: resolved.append(reference))
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output
    assert resolved == ["org/model"]
    assert [settings.engine.model for settings in served] == ["org/model"]
