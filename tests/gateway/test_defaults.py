"""Sampling where a client says nothing: what the model's makers recommend."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from freehold.gateway.backends.defaults import recommended


def test_a_directorys_recommendation_is_read_and_token_ids_are_left_alone(tmp_path: Path) -> None:
    said = {
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "repetition_penalty": 1.05,
        "do_sample": True,
        "eos_token_id": 5,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    expected = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    assert recommended(tmp_path) == expected
    (tmp_path / "model.gguf").touch()
    assert recommended(tmp_path / "model.gguf") == expected


def test_no_file_is_no_recommendation(tmp_path: Path) -> None:
    assert recommended(tmp_path) == {}


@pytest.mark.parametrize(
    "said", [{"temperature": -1}, {"top_p": 7}, {"top_k": 1.5}, {"temperature": "hot"}, {"min_p": True}, {"top_p": 0}]
)
def test_a_value_the_engine_would_refuse_is_left_out_with_a_warning(
    tmp_path: Path, said: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.5} | said))
    with caplog.at_level(logging.WARNING):
        assert recommended(tmp_path) == {"repetition_penalty": 1.5}
    assert next(iter(said)) in caplog.text


def test_a_broken_file_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert recommended(tmp_path) == {}
    assert "not used" in caplog.text
