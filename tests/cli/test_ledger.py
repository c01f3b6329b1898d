"""`freehold ledger` and `freehold export` as people run them, and a server that is killed under them."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.cli.conftest import Run

from freehold.cli.ledger import _print_checked
from freehold.provenance.checking import Checked

HEADER = "x-freehold-provenance"


@contextmanager
def serving(home: dict[str, str], tiny: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`freehold serve` on a tiny model; killed at the end."""
    command = [sys.executable, "-m", "freehold", "serve", "-m", str(tiny), "--port", "0", "--isa", "portable"]
    environment = {"FREEHOLD_HEAD_SECONDS": "0"} | environment
    server = subprocess.Popen(command, env=home | environment, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        yield server, next(found for line in server.stderr if (found := re.search(r"OPENAI_BASE_URL=(\S+)", line)))[1]
    finally:
        server.kill()
        server.stderr.close()
        server.wait()


def ask(address: str, text: str, **given: Any) -> tuple[str, bytes]:
    """A record's id, and the answer's body."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 8} | given
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{address}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.headers[HEADER], response.read()


def test_kill_9_of_a_server_loses_no_answer_that_was_sent(
    home: dict[str, str], tiny: Path, freehold: Run, tmp_path: Path
) -> None:
    with serving(home, tiny, FREEHOLD_KEEP_CONTENT="1") as (server, address):
        ids = [ask(address, f"question {i}", stream=i % 2 == 0)[0] for i in range(12)]
        server.send_signal(signal.SIGKILL)  # at once: the last answers are in no database yet
        assert server.wait(30) == -signal.SIGKILL
    listed = json.loads(freehold("ledger", "log", "--json", "--limit", "100").stdout)
    there = {record["id"]: record["outcome"] for record in listed}
    assert there == dict.fromkeys(ids, "finished")
    shown = json.loads(freehold("ledger", "log", ids[-1], "--json").stdout)
    assert shown["prompt"]["messages"] == [{"role": "user", "content": "question 11"}]
    assert shown["record"]["served_by"][0]["weights"]
    verified = freehold("ledger", "verify", "--json")
    assert verified.returncode == 0 and json.loads(verified.stdout)["report"]["size"] == 12


def test_embeddings_by_the_sdk_are_in_the_ledger_in_the_costs_and_in_the_log(
    home: dict[str, str], tiny: Path, freehold: Run
) -> None:
    with serving(home, tiny) as (server, address):
        client = openai.OpenAI(base_url=address, api_key="none")
        tokens = client.embeddings.create(model="tiny", input=["one", "two"]).usage.prompt_tokens
        (record,) = json.loads(freehold("ledger", "log", "--json").stdout)  # while it runs
        server.send_signal(signal.SIGINT)
        assert server.stderr is not None
        told = json.loads(
            next(line for line in server.stderr if "/v1/embeddings" in line).partition("freehold.access")[2]
        )
        server.wait(60)
    assert (record["activity"], record["outcome"]) == ("embed", "finished")
    (line,) = json.loads(freehold("cost", "--json").stdout)["lines"]
    assert (line["name"], line["requests"], line["prompt_tokens"]) == ("local", 1, tokens) and tokens > 0
    assert (told["backend"], told["model"], told["prompt_tokens"]) == ("local", "tiny", tokens)


@pytest.fixture
def used(home: dict[str, str], tiny: Path, freehold: Run, tmp_path: Path) -> list[str]:
    """A home whose ledger has three exchanges under an open licence, and a published head; gives their ids."""
    (tiny / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    with serving(home, tiny, FREEHOLD_KEEP_CONTENT="1") as (server, address):
        ids = [ask(address, f"question {i}")[0] for i in range(3)]
        server.send_signal(signal.SIGINT)
        server.wait(60)
    done = freehold("ledger", "head", "--out", str(tmp_path / "head.json"))
    assert done.returncode == 0 and "head of 3 records" in done.stderr
    return ids


def test_what_was_recorded_is_listed_verified_proved_packed_and_checked(
    used: list[str], freehold: Run, tmp_path: Path, home: dict[str, str]
) -> None:
    head, pack, proof = (str(tmp_path / name) for name in ("head.json", "pack.zip", "proof.json"))
    listed = freehold("ledger", "log")
    assert listed.returncode == 0 and all(id in listed.stdout for id in used) and "local" in listed.stdout
    verified = freehold("ledger", "verify", "--head", head)
    assert verified.returncode == 0 and "3 of them vouched for" in verified.stderr
    assert "everything was recorded" in verified.stderr
    Path(proof).write_text(freehold("ledger", "prove", used[1][:24]).stdout)
    packed = freehold("ledger", "pack", "--out", pack)
    assert packed.returncode == 0 and "not logged" in packed.stderr
    elsewhere = {"FREEHOLD_HOME": str(tmp_path / "elsewhere")}  # no database, no key
    for file, records in ((pack, 3), (proof, 1)):
        checked = freehold("ledger", "check", file, "--head", head, "--json", env=elsewhere)
        assert checked.returncode == 0 and json.loads(checked.stdout)["checked"]["records"] == records
        assert json.loads(checked.stdout)["checked"]["vouched"] == records
    assert not (tmp_path / "elsewhere").exists()
    data = bytearray(Path(pack).read_bytes())
    data[data.index(used[2].encode())] ^= 1
    Path(pack).write_bytes(data)
    checked = freehold("ledger", "check", pack, "--head", head, env=elsewhere)
    assert checked.returncode == 1 and "was changed in line" in checked.stdout


def test_a_check_says_how_many_records_the_given_head_vouches_for(
    used: list[str], freehold: Run, tmp_path: Path
) -> None:
    head, pack, proof = (str(tmp_path / name) for name in ("head.json", "pack.zip", "proof.json"))
    assert freehold("ledger", "forget", used[0]).returncode == 0  # a fourth record, after the head
    again = freehold("ledger", "forget", used[0])
    assert again.returncode == 3 and "no texts to forget" in again.stderr
    assert freehold("ledger", "pack", "--out", pack).returncode == 0
    found = json.loads(freehold("ledger", "check", pack, "--head", head, "--json").stdout)["checked"]
    assert (found["records"], found["vouched"]) == (4, 3)
    assert "vouches for 3 of the 4; the others" in freehold("ledger", "check", pack, "--head", head).stdout
    last = json.loads(freehold("ledger", "log", "--limit", "1", "--json").stdout)[0]["id"]
    Path(proof).write_text(freehold("ledger", "prove", last).stdout)
    found = json.loads(freehold("ledger", "check", proof, "--head", head, "--json").stdout)["checked"]
    assert (found["records"], found["vouched"]) == (1, 0)


def test_a_published_head_is_not_replaced_unasked(used: list[str], freehold: Run, tmp_path: Path) -> None:
    head = tmp_path / "head.json"
    kept = head.read_bytes()
    refused = freehold("ledger", "head", "--out", str(head))
    assert refused.returncode == 2 and "--force" in refused.stderr and head.read_bytes() == kept
    assert freehold("ledger", "head", "--out", str(head), "--force").returncode == 0 and head.read_bytes() != kept


def test_a_kind_that_is_none_is_refused_by_the_names_of_those_there_are(freehold: Run) -> None:
    done = freehold("ledger", "log", "--kind", "foo")
    assert done.returncode == 2 and "'exchange'" in done.stderr and "'gap'" in done.stderr
    assert "no record of kind gap" in freehold("ledger", "log", "--kind", "gap").stderr


def test_an_edit_in_the_database_is_found_and_named(used: list[str], freehold: Run, home: dict[str, str]) -> None:
    with closing(sqlite3.connect(f"{home['FREEHOLD_HOME']}/state/freehold.db")) as database, database:
        database.execute("update ledger_records set body = replace(body, 'finished', 'failed') where position = 1")
    verified = freehold("ledger", "verify", "--json")
    assert verified.returncode == 1
    (problem,) = json.loads(verified.stdout)["report"]["problems"]
    assert (problem["kind"], problem["position"], problem["id"]) == ("edited", 1, used[1])
    assert "record 1 is not what was recorded" in freehold("ledger", "verify").stdout


def test_training_data_is_exported_with_its_manifest_and_the_export_is_on_record(
    used: list[str], freehold: Run, tmp_path: Path
) -> None:
    out = tmp_path / "train.jsonl"
    assert freehold("export", "--out", str(out)).returncode == 2
    done = freehold("export", "--train-safe", "--out", str(out), "--json")
    report = json.loads(done.stdout)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    left = json.loads((tmp_path / "train.jsonl.manifest.json").read_text())["left_out"]
    assert {line["provenance"]["record"] for line in lines} | {entry["record"] for entry in left} == set(used)
    assert {entry["reason"] for entry in left} <= {"cut", "empty"} and report["lines"] == len(lines)
    (record,) = json.loads(freehold("ledger", "log", "--kind", "export", "--json").stdout)
    assert record["generated"][0]["id"] == f"sha256:{report['sha256']}" and record["id"] == report["record"]
    again = freehold("export", "--train-safe", "--out", str(out))
    assert again.returncode == 2 and "hint: --force" in again.stderr


def test_a_text_can_be_forgotten_and_the_ledger_still_verifies(used: list[str], freehold: Run, tmp_path: Path) -> None:
    done = freehold("ledger", "forget", used[0])
    assert done.returncode == 0 and "forgotten" in done.stderr
    assert "prompt" not in json.loads(freehold("ledger", "log", used[0], "--json").stdout)
    verified = freehold("ledger", "verify", "--head", str(tmp_path / "head.json"), "--json")
    assert verified.returncode == 0 and json.loads(verified.stdout)["report"]["forgotten"] == 1


def test_pull_and_compress_put_themselves_on_record(freehold: Run, tiny: Path, tmp_path: Path) -> None:
    pulled = json.loads(freehold("pull", str(tiny), "--json").stdout)
    done = freehold("compress", str(tiny), "--out", str(tmp_path / "small"), "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    newest, oldest = json.loads(freehold("ledger", "log", "--json").stdout)
    assert (oldest["kind"], oldest["id"]) == ("ingest", pulled["record"])
    assert (newest["kind"], newest["id"]) == ("quantize", made["record"])
    assert newest["used"][0]["id"] == oldest["generated"][0]["id"] == f"sha256:{made['report']['source_sha256']}"
    assert newest["generated"][0]["id"] not in (oldest["generated"][0]["id"], "sha256:None")


def test_a_model_is_there_even_when_the_ledger_cannot_be_written(
    freehold: Run, tiny: Path, home: dict[str, str]
) -> None:
    done = freehold("pull", str(tiny), env={"FREEHOLD_DATABASE_URL": "postgresql://127.0.0.1:1/x"})
    assert (
        done.returncode == 0
        and done.stdout.strip() == str(tiny)
        and "warning: this is not in the ledger" in done.stderr
    )
    off = freehold("pull", str(tiny), "--json", env={"FREEHOLD_LEDGER": "0"})
    assert json.loads(off.stdout)["record"] is None and not (Path(home["FREEHOLD_HOME"]) / "state").exists()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("ledger", "check", "absent.zip", "--head", "x"), 2, "can't read"),
        (("ledger", "check", "absent.zip"), 2, "--head is needed"),
        (("ledger", "log", "rec_absent"), 2, "no record"),
        (("ledger", "prove", "rec_absent"), 2, "no record"),
        (("ledger", "pack", "--out", "p.zip"), 2, "no record is chosen"),
        (("ledger", "pack", "--out", "p.zip", "--since", "yesterday"), 2, "--since: expected"),
        (("ledger", "verify", "--head", "absent.json"), 2, "can't read the head"),
    ],
)
def test_wrong_use_is_told_in_words(freehold: Run, words: tuple[str, ...], code: int, told: str) -> None:
    done = freehold(*words)
    assert done.returncode == code and told in done.stderr and "Traceback" not in done.stderr


def test_what_a_strangers_pack_says_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07"
    _print_checked(Checked(problems=[f"{evil} is not in the manifest"]))
    _print_checked(Checked(log=evil, not_logged=[evil], overlap_report=evil))
    shown = "".join(capsys.readouterr())
    assert "is not in the manifest" in shown and not {"\x1b", "\x07"} & set(shown)


def test_an_empty_ledger_says_how_to_begin(freehold: Run) -> None:
    done = freehold("ledger", "log")
    assert done.returncode == 0 and "freehold serve" in done.stderr and done.stdout == ""
