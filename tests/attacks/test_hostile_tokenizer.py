from __future__ import annotations

import json
from pathlib import Path

import pytest

from freehold.errors import FormatError, TokenizerError, UnsupportedError
from freehold.formats.tokenizer import load_tokenizer
from tests.formats.vocabularies import tiny_metadata, tiny_tokenizer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "lacks tokenizer.ggml.tokens"),
        ({"tokens": []}, "not a list"),
        ({"tokens": "abc"}, "not a list"),
        ({"tokens": [1, 2]}, "not a list"),
        ({"tokens": ["a", "a"]}, "twice"),
        ({"token_type": [1]}, "token types"),
        ({"merges": None}, "merges"),
        ({"merges": ["he"]}, "two tokens in a merge"),
        ({"merges": ["zz yy"]}, "don't fit together"),
        ({"eos_token_id": 10**9}, "outside"),
        ({"bos_token_id": -1}, "outside"),
        ({"eos_token_id": "2"}, "outside"),
        ({"eos_token_id": True}, "outside"),
        ({"model": "llama"}, "scores"),
        ({"model": "llama", "scores": [1.0]}, "scores"),
        ({"pre": ["gpt-2"]}, "unknown pre-tokenizer"),
    ],
)
def test_metadata_that_contradicts_itself_is_refused_with_one_clear_error(changes, message):
    with pytest.raises(TokenizerError, match=message):
        tiny_tokenizer(**changes)


def test_an_unsupported_kind_of_tokenizer_is_named():
    with pytest.raises(UnsupportedError, match="'bert'"):
        tiny_tokenizer(model="bert")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"version": "1.0"',
        b"{}",
        b'{"model": {"type": "BPE"}}',
        b"[" * 100_000,
        b'{"decoder": "ByteLevel"}',
    ],
)
def test_a_broken_tokenizer_json_is_refused_with_one_clear_error(tmp_path: Path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path)


def _changed(tmp_path: Path, **changes) -> Path:
    tiny_tokenizer().save(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(document | changes))
    return tmp_path


def test_a_decoder_that_cannot_be_followed_byte_by_byte_is_refused(tmp_path: Path):
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    with pytest.raises(UnsupportedError, match="WordPiece"):
        load_tokenizer(_changed(tmp_path, decoder=decoder))


def test_a_token_id_of_billions_takes_no_memory(tmp_path: Path):
    token = {
        "id": 2**32 - 2,
        "content": "<x>",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    assert load_tokenizer(_changed(tmp_path, added_tokens=[token])).vocabulary < 1000
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    model["vocab"]["<y>"] = 2**32 - 2
    with pytest.raises(TokenizerError, match="4,294,967,294"):
        load_tokenizer(_changed(tmp_path, model=model))


def test_a_splitting_rule_that_explodes_is_an_error_and_no_crash(tmp_path: Path):
    rule = {"type": "Split", "pattern": {"Regex": r"^(a+)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer = load_tokenizer(_changed(tmp_path, pre_tokenizer=rule))
    with pytest.raises(TokenizerError):
        tokenizer.encode("a" * 60 + "b")


def test_a_broken_splitting_rule_is_an_error(tmp_path: Path):
    rule = {"type": "Split", "pattern": {"Regex": "(["}, "behavior": "Isolated", "invert": False}
    with pytest.raises(TokenizerError):
        load_tokenizer(_changed(tmp_path, pre_tokenizer=rule))


def test_a_lone_surrogate_is_refused_with_its_place():
    with pytest.raises(TokenizerError, match="character 3"):
        tiny_tokenizer().encode("abc\ud800")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"])
def test_broken_files_beside_the_tokenizer_are_refused(tmp_path: Path, name):
    tiny_tokenizer().save(tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(FormatError, match=name):
        load_tokenizer(tmp_path)


def test_special_ids_outside_the_vocabulary_are_refused(tmp_path: Path):
    tiny_tokenizer().save(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5000000}')
    with pytest.raises(TokenizerError, match="5000000"):
        load_tokenizer(tmp_path)


def test_remote_code_named_by_a_config_is_neither_run_nor_passed_on(tmp_path: Path):
    tiny_tokenizer().save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", None]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    out = tmp_path / "out"
    out.mkdir()
    load_tokenizer(tmp_path).save(out)
    assert "auto_map" not in (out / "tokenizer_config.json").read_text()


def test_a_token_longer_than_any_text_costs_nothing():
    metadata = tiny_metadata()
    metadata["tokenizer.ggml.tokens"][0] = "x" * 1_000_000
    tokens = metadata["tokenizer.ggml.tokens"]
    assert tiny_tokenizer(tokens=tokens).encode("hello") == tiny_tokenizer().encode("hello")
