"""The frame of the command line: verbs, errors, exit codes, streams."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from freehold.cli import VERBS, app, main
from freehold.cli.frame import BROKEN_PIPE, BUG, INTERRUPTED
from freehold.errors import FormatError, FreeholdError, SettingError

Run = Callable[..., "subprocess.CompletedProcess[str]"]
HEAVY = ("numpy", "starlette", "uvicorn", "rich", "msgspec", "httpx2", "tokenizers", "freehold.kernels", "asyncio")


def loaded_after(words: list[str]) -> set[str]:
    """Top-level modules and our own packages that are imported once `freehold WORDS` is done."""
    script = (
        "import sys\nfrom freehold.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    print('MODULES', *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "Usage:" in done.stdout
    return set(done.stderr.split("MODULES", 1)[1].split())


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in VERBS)], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    assert loaded_after(words).isdisjoint(HEAVY)


def test_help_imports_no_verb() -> None:
    assert not {f"freehold.cli.{name}" for name in VERBS} & loaded_after(["--help"])


@pytest.mark.parametrize("name", VERBS)
def test_each_verbs_line_in_the_table_is_its_own_first_line(name: str) -> None:
    command = app.get_command(click.Context(app), name)
    assert command is not None and command.name == name
    assert (command.help or "").splitlines()[0] == VERBS[name]


def test_an_unknown_verb_is_wrong_use_and_brings_the_nearest_one(freehold: Run) -> None:
    done = freehold("compres")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no verb 'compres'\nhint: did you mean `freehold compress`?\n"


def test_a_missing_argument_is_one_error_line_and_one_hint_line(freehold: Run) -> None:
    done = freehold("pull")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: Missing argument 'MODEL'.",
        "hint: `freehold pull --help` explains the options",
    ]


@pytest.mark.parametrize("words", [[], ["ledger"], ["key"]], ids=["none", "ledger", "key"])
def test_a_group_without_a_verb_shows_its_help_as_help_does_and_is_wrong_use(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as asked:
        main([*words, "--help"])
    help_text = capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(words)
    shown = capsys.readouterr()
    assert (asked.value.code, ended.value.code) == (0, 2)
    assert (shown.out, shown.err) == ("", help_text) and help_text.count("\n") > 5


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `freehold list` raise `error`."""

    @click.command("list")
    def command() -> None:
        raise error

    monkeypatch.setattr("freehold.cli.list.command", command)


@pytest.mark.parametrize(
    ("error", "code"),
    [(FormatError("bad magic", hint="fetch it again"), 3), (SettingError("no port"), 2)],
    ids=["3", "2"],
)
def test_an_error_of_ours_becomes_its_lines_and_its_exit_code(
    error: FreeholdError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, error)
    with pytest.raises(SystemExit) as ended:
        main(["list"])
    lines = [f"error: {error.message}"] + ([f"hint: {error.hint}"] if error.hint else [])
    assert (ended.value.code, capsys.readouterr().err.splitlines()) == (code, lines)


def test_a_message_of_several_lines_stays_one_error_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, FormatError("first\nsecond\n\x1b[31m third"))
    with pytest.raises(SystemExit):
        main(["list"])
    assert capsys.readouterr().err == "error: first second [31m third\n"


def test_a_bug_asks_for_a_report_and_shows_the_traceback_only_with_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ZeroDivisionError("by nought"))
    with pytest.raises(SystemExit) as ended:
        main(["list"])
    quiet = capsys.readouterr().err
    assert ended.value.code == BUG
    assert "unexpected ZeroDivisionError: by nought" in quiet and "freehold --debug" in quiet
    assert "Traceback" not in quiet
    with pytest.raises(SystemExit):
        main(["--debug", "list"])
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_ends_with_130_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    with pytest.raises(SystemExit) as ended:
        main(["list"])
    assert ended.value.code == INTERRUPTED
    assert capsys.readouterr().err.strip() == ""


def test_a_reader_that_goes_away_ends_us_quietly(home: dict[str, str]) -> None:
    script = "import sys, click, freehold.cli.list as verb\n"
    script += "from freehold.cli import main\n"
    script += "verb.command = click.command('list')(lambda: [click.echo('x' * 100) for _ in range(100_000)])\n"
    script += "main(['list'])"
    writer = subprocess.Popen(
        [sys.executable, "-c", script], env=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None and writer.stderr is not None
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr.read() == ""
    writer.stderr.close()
    assert writer.wait(timeout=60) == BROKEN_PIPE


def test_the_version_is_the_packages(freehold: Run) -> None:
    from freehold import __version__

    done = freehold("--version")
    assert (done.returncode, done.stdout) == (0, f"freehold {__version__}\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_calls_us(freehold: Run, shell: str) -> None:
    done = freehold("completion", shell)
    assert done.returncode == 0
    assert f"_FREEHOLD_COMPLETE={shell}_complete" in done.stdout


def test_a_shell_completes_verbs(freehold: Run) -> None:
    env = {"_FREEHOLD_COMPLETE": "bash_complete", "COMP_WORDS": "freehold com", "COMP_CWORD": "1"}
    done = freehold(env=env)
    assert done.stdout.splitlines() == ["plain,compress", "plain,completion"]
