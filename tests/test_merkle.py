"""Merkle trees against the vectors of certificate-transparency-go and against the definitions in RFC 6962."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold import merkle

LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
# https://github.com/google/certificate-transparency-go and transparency-dev/merkle, testonly/constants.go
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
# (leaf, counted from 1; size; proof), as in the same file
INCLUSIONS = [
    (1, 1, []),
    (
        1,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        6,
        8,
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (3, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (
        2,
        5,
        [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]
CONSISTENCIES = [
    (1, 1, []),
    (
        1,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        6,
        8,
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        2,
        5,
        [
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]


def tree(count: int) -> merkle.Tree:
    return merkle.Tree(merkle.leaf_hash(b"%d" % i) for i in range(count))


def vectors() -> merkle.Tree:
    return merkle.Tree(map(merkle.leaf_hash, LEAVES))


def defined_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    left, right = defined_root(leaves[:k]), defined_root(leaves[k:])
    return hashlib.sha256(b"\x01" + left + right).digest()


def test_the_empty_tree_has_the_hash_of_nothing() -> None:
    assert merkle.Tree().root().hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert merkle.root([]) == merkle.Tree().root()


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_those_of_certificate_transparency(size: int) -> None:
    assert vectors().root(size).hex() == ROOTS[size - 1]
    assert merkle.root(map(merkle.leaf_hash, LEAVES[:size])).hex() == ROOTS[size - 1]


@pytest.mark.parametrize(("leaf", "size", "proof"), INCLUSIONS)
def test_inclusion_proofs_are_those_of_certificate_transparency(leaf: int, size: int, proof: list[str]) -> None:
    assert [value.hex() for value in vectors().inclusion(leaf - 1, size)] == proof


@pytest.mark.parametrize(("old", "new", "proof"), CONSISTENCIES)
def test_consistency_proofs_are_those_of_certificate_transparency(old: int, new: int, proof: list[str]) -> None:
    assert [value.hex() for value in vectors().consistency(old, new)] == proof


@given(st.integers(0, 70))
def test_the_root_is_the_one_the_rfc_defines(size: int) -> None:
    leaves = [merkle.leaf_hash(b"%d" % i) for i in range(size)]
    assert tree(size).root() == merkle.root(leaves) == defined_root(leaves)


def test_every_leaf_of_every_small_tree_can_be_proved_and_nothing_else() -> None:
    whole = tree(33)
    for size in range(1, 34):
        for index in range(size):
            proof, root = whole.inclusion(index, size), whole.root(size)
            leaf = merkle.leaf_hash(b"%d" % index)
            assert merkle.verify_inclusion(leaf, index, size, proof, root)
            assert not merkle.verify_inclusion(merkle.leaf_hash(b"x"), index, size, proof, root)
            assert not any(merkle.verify_inclusion(leaf, i, size, proof, root) for i in range(size) if i != index)
            assert not merkle.verify_inclusion(leaf, index, size, [*proof, b"\0" * 32], root)
            assert not proof or not merkle.verify_inclusion(leaf, index, size, proof[:-1], root)


def test_every_beginning_of_every_small_tree_can_be_proved_and_nothing_else() -> None:
    whole = tree(33)
    for new in range(1, 34):
        for old in range(1, new + 1):
            proof, before, after = whole.consistency(old, new), whole.root(old), whole.root(new)
            assert merkle.verify_consistency(old, new, before, after, proof)
            assert not merkle.verify_consistency(old, new, before, b"\1" * 32, proof)
            assert not merkle.verify_consistency(old, new, b"\1" * 32, after, proof)
            assert not merkle.verify_consistency(old, new, before, after, [*proof, b"\0" * 32])
            assert not proof or not merkle.verify_consistency(old, new, before, after, proof[:-1])


@given(st.integers(2, 60), st.data())
def test_a_tree_with_another_leaf_does_not_continue_the_old_one(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, new - 1))
    changed = data.draw(st.integers(0, old - 1))
    leaves = [merkle.leaf_hash(b"%d" % i) for i in range(new)]
    honest = merkle.root(leaves[:old])
    leaves[changed] = merkle.leaf_hash(b"another")
    forged = merkle.Tree(leaves)
    assert not merkle.verify_consistency(old, new, honest, forged.root(), forged.consistency(old))


def test_the_empty_tree_begins_every_tree() -> None:
    assert tree(5).consistency(0) == []
    assert merkle.verify_consistency(0, 5, merkle.EMPTY_ROOT, tree(5).root(), [])
    assert not merkle.verify_consistency(0, 5, b"\0" * 32, tree(5).root(), [])


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0)])
def test_a_leaf_that_is_not_there_is_an_error(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="expected a leaf"):
        tree(3).inclusion(index, size)
    assert not merkle.verify_inclusion(b"\0" * 32, index, size, [], b"\0" * 32)


def test_a_size_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected a size from 0 to 3, found 4"):
        tree(3).root(4)
    with pytest.raises(ValueError, match="0 <= old <= new"):
        tree(3).consistency(3, 2)
