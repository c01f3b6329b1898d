"""The verbs that fetch, make, weigh and remove models, on a tiny real one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from freehold.cli.compress import command as compress_command
from freehold.cli.compress import default_name
from freehold.cli.eval import help_topics

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_compressed_model_is_listed_shown_and_removed_by_its_name(
    freehold: Run, tiny: Path, home: dict[str, str]
) -> None:
    done = freehold("compress", str(tiny), "--name", "small", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["model"] == "small" and told["report"]["bits_per_weight"] < 16
    path = Path(home["FREEHOLD_HOME"]) / "models" / "small"
    assert told["path"] == str(path)
    assert [model["name"] for model in json.loads(freehold("list", "--json").stdout)] == ["small"]
    assert "small  compressed" in freehold("list").stdout
    assert json.loads(freehold("show", "small", "--json").stdout)["architecture"] == "LlamaForCausalLM"
    assert "LlamaForCausalLM" in freehold("show", "small").stdout
    assert json.loads(freehold("rm", "small", "--json").stdout)["bytes_freed"] > 0
    assert not path.exists()
    assert freehold("list", "--json").stdout == "[]\n"


def test_an_empty_store_says_how_to_begin(freehold: Run) -> None:
    done = freehold("list")
    assert (done.returncode, done.stdout) == (0, "")
    assert "freehold pull smollm2" in done.stderr


def test_the_report_of_a_compression_is_a_table_on_stdout_and_words_on_stderr(freehold: Run, tiny: Path) -> None:
    done = freehold("compress", str(tiny), "--out", "made")
    assert done.stdout.splitlines()[0].split() == ["ROLE", "FROM", "TO", "TENSORS", "SIZE", "WORST", "ERROR"]
    assert "int4 g32" in done.stdout
    assert "smaller than bf16" in done.stderr


def test_an_existing_directory_is_not_replaced_unless_forced(freehold: Run, tiny: Path, tmp_path: Path) -> None:
    assert freehold("compress", str(tiny), "--out", "made").returncode == 0
    before = (tmp_path / "made" / "model.safetensors").stat().st_mtime_ns
    refused = freehold("compress", str(tiny), "--out", "made")
    assert refused.returncode == 2 and refused.stderr.startswith("error: ")
    assert (tmp_path / "made" / "model.safetensors").stat().st_mtime_ns == before
    assert freehold("compress", str(tiny), "--out", "made", "--force").returncode == 0
    assert (tmp_path / "made" / "model.safetensors").stat().st_mtime_ns > before


@pytest.mark.parametrize("name", ["../up", "a/b", "", "smollm2", ".hidden"])
def test_a_name_that_could_not_be_found_again_is_refused(name: str, freehold: Run, tiny: Path, tmp_path: Path) -> None:
    done = freehold("compress", str(tiny), f"--name={name}")
    assert done.returncode == 2, done.stderr
    assert not list(tmp_path.rglob("*.partial")) and not (tmp_path / "home" / "models").exists()


def test_two_places_to_write_to_are_refused(freehold: Run, tiny: Path) -> None:
    done = freehold("compress", str(tiny), "--name", "a", "--out", "b")
    assert done.returncode == 2 and "--out and --name" in done.stderr


@pytest.mark.parametrize(
    ("source", "name"),
    [("smollm2", "smollm2-int4"), ("org/Repo", "Repo-int4"), ("./dir/", "dir-int4"), ("a/m.gguf", "m-int4")],
)
def test_the_default_name_comes_from_the_source(source: str, name: str) -> None:
    assert default_name(source, 4) == name


@pytest.mark.parametrize("verb", ["pull", "show", "rm", "compress", "bench"])
def test_an_unknown_model_is_one_error_and_one_hint(verb: str, freehold: Run, tmp_path: Path) -> None:
    done = freehold(verb, "smolm2")
    assert done.returncode in (2, 3) and done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: ")
    assert "smollm2" in lines[1]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_truncated_model_is_one_error_and_leaves_nothing_behind(freehold: Run, tiny: Path, tmp_path: Path) -> None:
    weights = (tiny / "model.safetensors").read_bytes()
    (tiny / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    done = freehold("compress", str(tiny), "--out", "made")
    assert done.returncode == 3 and done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("home", "config", "hf")) == ["tiny"]


def test_eval_weighs_a_compressed_model_against_its_original(freehold: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("All happy families are alike. " * 8, encoding="utf-8")
    assert freehold("compress", str(tiny), "--out", "made").returncode == 0
    words = ["--text", "text.txt", "--json"]
    told = json.loads(freehold("eval", str(tiny), "made", *words).stdout)
    same = json.loads(freehold("eval", str(tiny), str(tiny), *words, "--kv-dtype", "f32").stdout)
    assert told["kld_mean"] > same["kld_mean"] >= 0
    assert told["size_ratio"] < 1 and 0 <= told["top1_agreement"] <= 1
    assert told["text"] == "text.txt" and len(told["text_sha256"]) == 64
    shown = freehold("eval", str(tiny), "made", "--text", "text.txt").stdout
    assert "kld mean" in shown and "top1 agreement" in shown


def test_eval_refuses_a_text_that_is_not_utf_8(freehold: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"abc\xffdef")
    done = freehold("eval", str(tiny), str(tiny), "--text", "text.txt")
    assert done.returncode == 2
    assert done.stderr == "error: text.txt must be UTF-8 text, found byte 0xff at 3\n"


def test_the_default_text_is_pythons_help_in_a_fixed_order() -> None:
    text = help_topics()
    assert text.startswith('The "assert" statement') and len(text) > 100_000
    assert text == help_topics()


def test_a_compression_cut_off_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path) -> None:
    def cut_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("freehold.compress.compress", cut_off)
    done = CliRunner().invoke(compress_command, [str(tiny), "--out", str(tmp_path / "made")])
    assert isinstance(done.exception, SystemExit) and "takes it up again" in done.stderr
    assert f"{tmp_path / 'made'}.partial" in done.stderr
