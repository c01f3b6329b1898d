"""Settings: where a value comes from, and what is said of a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold import settings_file as settings
from freehold.errors import SettingError


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[engine]\nthreads = 3\nmax_batch = 5\nmax_queue = 7\n")
    environment = {"FREEHOLD_THREADS": "4", "FREEHOLD_MAX_BATCH": "6"}
    found = settings.load(file, {"threads": 9, "max_batch": None}, environment)
    assert (found.engine.threads, found.engine.max_batch, found.engine.max_queue) == (9, 6, 7)
    assert found.origins["engine.threads"] == "flag --threads"
    assert found.origins["engine.max_batch"] == "env FREEHOLD_MAX_BATCH"
    assert found.origins["engine.max_queue"] == f"file {file}"
    assert found.origins["engine.isa"] == "default"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FREEHOLD_PORT": "99999"}, "server.port from env FREEHOLD_PORT: expected at most 65535, found '99999'"),
        ({"FREEHOLD_PORT": "-1"}, "expected at least 0, found '-1'"),
        ({"FREEHOLD_PORT": "http"}, "expected int, found 'http'"),
        ({"FREEHOLD_MAX_BODY_MB": "0"}, "expected at least 0.001"),
        ({"FREEHOLD_ISA": "sse9"}, "expected one of auto, reference"),
    ],
)
def test_a_bad_value_names_setting_origin_and_expectation(environment: dict[str, str], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        settings.load(environment=environment)
    assert message in caught.value.message


def test_a_key_in_the_file_is_refused_with_the_way_to_give_it_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[[upstream]]\nname = "x"\nbase_url = "https://x.example/v1"\napi_key = "sk-very-secret"\n')
    with pytest.raises(SettingError) as caught:
        settings.load(file, environment={})
    assert "key_env" in (caught.value.hint or "")
    assert "secret" not in caught.value.message + (caught.value.hint or "")
