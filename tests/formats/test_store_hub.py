"""The store against a hub that is a real server on loopback, and against the huggingface_hub library's view of the cache."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.errors import ModelNotFoundError, StoreError, UnsupportedError
from freehold.formats import hub as hub_module
from freehold.formats import store
from freehold.formats.hub import Hub, HubSettings
from tests.formats.fake_hub import COMMIT, FakeHub, serving

WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
TENSORS = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "model.safetensors": WEIGHTS}
QUANTS = {
    "README.md": b"hi",
    "tiny-Q4_K_M.gguf": b"GGUF" + WEIGHTS,
    "tiny-Q8_0.gguf": b"GGUF" * 9,
    "mmproj-F16.gguf": b"x",
}
PICKLES = {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04."}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "FREEHOLD_", "TRANSFORMERS_")):
            monkeypatch.delenv(name)
    repositories = {"org/tensors": dict(TENSORS), "org/quants": dict(QUANTS), "org/pickles": dict(PICKLES)}
    with serving(FakeHub(repositories)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "freehold"))
        monkeypatch.setattr(Hub.__init__, "__kwdefaults__", {"pause": lambda seconds: None})
        yield running


def leftovers(tmp_path: Path) -> list[str]:
    return [file.name for file in tmp_path.rglob("*") if file.name.endswith((".incomplete", ".partial"))]


def test_a_model_is_fetched_once_and_found_again_without_the_network(hub, monkeypatch):
    path = store.resolve("org/tensors")
    assert {file.name: file.read_bytes() for file in path.iterdir()} == TENSORS
    requests = len(hub.seen)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert store.resolve("org/tensors") == store.resolve("org/tensors", offline=True) == path
    assert len(hub.seen) == requests


def test_the_cache_is_one_that_the_huggingface_library_reads(hub, tmp_path):
    path = store.pull("org/tensors")
    import huggingface_hub

    cache = tmp_path / "hf" / "hub"
    snapshot = huggingface_hub.snapshot_download("org/tensors", cache_dir=cache, local_files_only=True)
    assert Path(snapshot) == path
    found = huggingface_hub.try_to_load_from_cache("org/tensors", "model.safetensors", cache_dir=cache)
    assert found == str(path / "model.safetensors")
    (repo,) = huggingface_hub.scan_cache_dir(cache).repos
    assert repo.repo_id == "org/tensors" and [r.commit_hash for r in repo.revisions] == [COMMIT]


def test_what_the_huggingface_library_fetched_is_used_as_it_is(hub, tmp_path):
    blobs = tmp_path / "hf" / "hub" / "models--org--other" / "blobs"
    snapshot = blobs.parent / "snapshots" / COMMIT
    for directory in (blobs, snapshot, blobs.parent / "refs"):
        directory.mkdir(parents=True)
    (blobs.parent / "refs" / "main").write_text(COMMIT)
    for name, content in TENSORS.items():
        (blobs / name).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert store.resolve("org/other") == snapshot
    assert not hub.seen


def test_only_what_a_model_needs_is_fetched(hub):
    hub.repositories["org/tensors"] |= {
        "pytorch_model.bin": b"p",
        "consolidated.safetensors": b"twice",
        "onnx/model.onnx": b"o",
        "modeling_evil.py": b"import os",
    }
    assert {file.name for file in store.resolve("org/tensors").iterdir()} == set(TENSORS)


def test_a_variant_names_its_file_and_the_usual_one_is_the_default(hub):
    assert store.resolve("org/quants").name == "tiny-Q4_K_M.gguf"
    assert store.resolve("org/quants:q8_0").name == "tiny-Q8_0.gguf"
    assert store.resolve("org/quants:tiny-Q8_0.gguf").name == "tiny-Q8_0.gguf"
    with pytest.raises(ModelNotFoundError, match="'Q2_K'") as caught:
        store.resolve("org/quants:Q2_K")
    assert "Q4_K_M, Q8_0" in caught.value.hint
    assert not hub.gets("mmproj")


def test_a_variant_that_is_here_serves_a_reference_without_one(hub):
    path = store.resolve("org/quants:Q8_0")
    assert store.resolve("org/quants") == path
    assert store.pull("org/quants").name == "tiny-Q4_K_M.gguf"


def test_a_repository_with_only_pickles_is_refused_before_anything_is_fetched(hub, tmp_path):
    with pytest.raises(UnsupportedError, match="pickle"):
        store.resolve("org/pickles")
    assert not hub.gets("/resolve/") and not (tmp_path / "hf").exists()


def test_a_revision_is_honoured_and_an_unknown_one_named(hub):
    assert store.resolve("org/tensors@v1").name == COMMIT
    assert store.resolve(f"org/tensors@{COMMIT}").name == COMMIT
    with pytest.raises(ModelNotFoundError, match="'v9'"):
        store.resolve("org/tensors@v9")


def test_a_cut_transfer_goes_on_where_it_stopped(hub, tmp_path):
    hub.cuts["model.safetensors"] = [300_000, 200_000]
    path = store.resolve("org/tensors")
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [headers.get("range") for headers in hub.gets("model.safetensors")]
    assert ranges == [None, "bytes=300000-", "bytes=500000-"]
    assert not leftovers(tmp_path)


def test_a_transfer_cut_for_good_is_resumed_by_the_next_call(hub, tmp_path):
    hub.cuts["model.safetensors"] = [300_000, 0, 0, 0, 0, 0]
    with pytest.raises(StoreError, match=r"model\.safetensors") as caught:
        store.resolve("org/tensors")
    assert "kept" in caught.value.hint
    assert store.list_models() == []
    with pytest.raises(ModelNotFoundError):
        store.resolve("org/tensors", offline=True)
    hub.cuts.clear()
    hub.seen.clear()
    assert (store.resolve("org/tensors") / "model.safetensors").read_bytes() == WEIGHTS
    assert [headers.get("range") for headers in hub.gets("model.safetensors")] == ["bytes=300000-"]
    assert not leftovers(tmp_path)


def test_a_server_that_ignores_ranges_is_read_from_the_start(hub):
    hub.cuts["model.safetensors"] = [300_000]
    hub.ignores_ranges = True
    assert (store.resolve("org/tensors") / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_wrong_checksum_is_refused_and_nothing_of_it_stays(hub, tmp_path, name):
    hub.damaged.add(name)
    with pytest.raises(StoreError, match="checksum"):
        store.resolve("org/tensors")
    assert not leftovers(tmp_path)
    assert store.list_models() == []
    hub.damaged.clear()
    assert (store.resolve("org/tensors") / name).read_bytes() == TENSORS[name]


def test_a_partial_file_of_damaged_bytes_is_found_out(hub, tmp_path):
    hub.cuts["model.safetensors"] = [300_000, 0, 0, 0, 0, 0]
    with pytest.raises(StoreError):
        store.resolve("org/tensors")
    (partial,) = tmp_path.rglob("*.incomplete")
    partial.write_bytes(b"\xff" * 300_000)
    hub.cuts.clear()
    with pytest.raises(StoreError, match="checksum"):
        store.resolve("org/tensors")
    assert (store.resolve("org/tensors") / "model.safetensors").read_bytes() == WEIGHTS


def test_a_busy_hub_is_asked_again(hub):
    hub.listing_status = [429, 503]
    hub.file_status = [500, 502]
    assert store.resolve("org/tensors").is_dir()


def test_the_pause_is_what_the_hub_asks_for_within_bounds(hub):
    pauses: list[float] = []
    hub.listing_status, hub.retry_after = [429, 429], "7"
    Hub(HubSettings.from_environment(), pause=pauses.append).listing("org/tensors")
    assert pauses == [7.0, 7.0]
    hub.listing_status, hub.retry_after = [429], "99999"
    Hub(HubSettings.from_environment(), pause=pauses.append).listing("org/tensors")
    assert pauses[2:] == [hub_module.MAX_PAUSE]


@pytest.mark.parametrize(("status", "words"), [(429, "limits our requests"), (500, "answered 500"), (418, "418")])
def test_a_hub_that_keeps_failing_is_one_clear_error(hub, status, words):
    hub.listing_status = [status] * 20
    with pytest.raises(StoreError, match=words) as caught:
        store.resolve("org/tensors")
    assert caught.value.hint


def test_an_unknown_model_is_not_found(hub):
    with pytest.raises(ModelNotFoundError, match="no model org/missing") as caught:
        store.resolve("org/missing")
    assert "HF_TOKEN" in caught.value.hint


def test_a_gated_model_says_what_to_do(hub):
    hub.gated = True
    with pytest.raises(StoreError, match="gated") as caught:
        store.resolve("org/tensors")
    assert f"{hub.address}/org/tensors" in caught.value.hint


def test_no_network_is_one_clear_error_and_the_cache_still_serves(hub, monkeypatch):
    path = store.resolve("org/tensors")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert store.resolve("org/tensors") == path
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9") as caught:
        store.pull("org/tensors")
    assert "network" in caught.value.hint


def test_offline_without_the_model_is_one_clear_error(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match="offline"):
        store.resolve("org/tensors")
    assert not hub.seen


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, monkeypatch, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hf_from_file\n")
    hub.needs_token = "hf_from_file"
    with serving(FakeHub(hub.repositories)) as other:
        hub.elsewhere = other.address
        store.resolve("org/tensors")
        assert other.gets("model.safetensors")
        assert not any("authorization" in headers for _, _, headers in other.seen)
    assert all(headers["authorization"] == "Bearer hf_from_file" for _, _, headers in hub.seen)


def test_the_token_is_in_no_error(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token")
    hub.listing_status = [500] * 20
    with pytest.raises(StoreError) as caught:
        store.resolve("org/tensors")
    shown = f"{caught.value.message} {caught.value.hint} {HubSettings.from_environment()!r}"
    assert "hf_secret_token" not in shown


@pytest.mark.parametrize("token", ["hf_first\nhf_secret", "hf_secret\u00e9", "hf_\x00secret", "two hf_secret"])
def test_a_token_that_no_header_can_carry_is_refused_without_being_shown(hub, monkeypatch, tmp_path, token):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(token)
    with pytest.raises(StoreError, match="token must be one line") as caught:
        store.resolve("org/tensors")
    assert "secret" not in f"{caught.value.message} {caught.value.hint}" and not hub.seen


@pytest.mark.parametrize("status", [403, 404, 418, 500])
def test_credentials_in_the_endpoint_are_in_no_error(hub, monkeypatch, status):
    monkeypatch.setenv("HF_ENDPOINT", hub.address.replace("//", "//me:p%40ss-word@"))
    hub.listing_status = [status] * 20
    with pytest.raises(StoreError) as caught:
        store.resolve("org/tensors")
    shown = f"{caught.value.message} {caught.value.hint} {HubSettings.from_environment()!r}"
    assert "ss-word" not in shown and "127.0.0.1" in shown


def test_progress_counts_every_byte_once_over_all_files(hub):
    hub.cuts["model.safetensors"] = [300_000]
    steps: list[tuple[int, int | None]] = []
    store.resolve("org/tensors", progress=lambda done, total, what: steps.append((done, total)))
    total = sum(map(len, TENSORS.values()))
    assert steps[-1] == (total, total)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_two_processes_fetching_at_once_fetch_once(hub, tmp_path):
    code = "from freehold.formats import store; print(store.resolve('org/tensors'))"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    out = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert len(out) == 1
    assert len(hub.gets("model.safetensors")) == 1


def test_threads_fetching_at_once_fetch_once(hub):
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(store.resolve("org/tensors"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 4
    assert len(hub.gets("model.safetensors")) == 1


def test_a_full_disk_is_found_out_before_fetching(hub, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(hub_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StoreError, match="free") as caught:
        store.resolve("org/tensors")
    assert "HF_HUB_CACHE" in caught.value.hint
    assert not hub.gets("/resolve/")


def test_a_disk_that_fills_up_is_one_clear_error(hub, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hub_module, "sync", full)
    with pytest.raises(StoreError, match="disk filled up"):
        store.resolve("org/tensors")
    assert store.list_models() == []


def test_a_cache_that_may_not_be_written_is_one_clear_error(hub, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError):
        store.resolve("org/tensors")


def test_models_of_the_cache_are_listed_by_names_that_resolve(hub):
    store.resolve("org/tensors")
    store.resolve("org/quants")
    store.resolve("org/quants:Q8_0")
    listed = {model.name: model for model in store.list_models()}
    assert set(listed) == {"org/tensors", "org/quants:Q4_K_M", "org/quants:Q8_0"}
    for name, model in listed.items():
        assert store.resolve(name, offline=True) == model.path
    assert listed["org/quants:Q8_0"].size == 36
    assert listed["org/tensors"].size == sum(map(len, TENSORS.values()))


def test_removing_a_model_frees_its_bytes_and_leaves_the_others(hub, tmp_path):
    store.resolve("org/quants:Q8_0")
    store.resolve("org/quants:Q4_K_M")
    assert store.remove("org/quants:Q8_0") == 36
    assert [model.name for model in store.list_models()] == ["org/quants:Q4_K_M"]
    assert len(list((tmp_path / "hf/hub/models--org--quants/blobs").iterdir())) == 1
    assert store.remove("org/quants") >= len(QUANTS["tiny-Q4_K_M.gguf"])
    assert not (tmp_path / "hf/hub/models--org--quants").exists()
    with pytest.raises(ModelNotFoundError):
        store.remove("org/quants")


def test_a_new_commit_shares_unchanged_blobs_and_old_ones_can_go(hub, tmp_path):
    old = store.resolve("org/tensors")
    hub.commit = "f" * 40
    hub.repositories["org/tensors"]["config.json"] = b'{"model_type": "qwen2"}'
    assert store.resolve("org/tensors") == old, "resolving uses what is here"
    hub.seen.clear()
    new = store.pull("org/tensors")
    assert new.name == "f" * 40 and len(hub.gets("/resolve/")) == 1
    assert store.remove(f"org/tensors@{COMMIT}") == len(TENSORS["config.json"])
    assert not old.exists() and (new / "model.safetensors").read_bytes() == WEIGHTS


def test_a_snapshot_that_lacks_a_shard_is_not_taken_for_a_model(hub):
    index = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    shards = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 100 for i in (1, 2)}
    hub.repositories["org/sharded"] = {"config.json": b"{}", "model.safetensors.index.json": index, **shards}
    path = store.resolve("org/sharded")
    assert {file.name for file in path.iterdir()} == set(hub.repositories["org/sharded"])
    (path / "model-00002-of-00002.safetensors").unlink()
    assert store.list_models() == []
    hub.seen.clear()
    assert store.resolve("org/sharded") == path and hub.seen
