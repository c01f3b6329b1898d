from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import TokenizerError
from freehold.formats.pretokenizers import PRE_TOKENIZERS
from freehold.formats.template import ChatTemplate
from freehold.formats.tokenizer import Tokenizer, load_tokenizer
from tests.formats.vocabularies import (
    VECTORS,
    gemma_metadata,
    metadata_of,
    recorded_tokenizer,
    renumbered,
    tiny_metadata,
    tiny_tokenizer,
    vector,
    write_gguf,
)

NAMES = sorted(file.stem for file in VECTORS.glob("*.json"))


@pytest.fixture(scope="module", params=NAMES)
def recorded(request: pytest.FixtureRequest) -> tuple[dict, Tokenizer]:
    return vector(request.param), recorded_tokenizer(request.param)


@pytest.fixture(scope="module")
def smollm() -> Tokenizer:
    return recorded_tokenizer("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def llama() -> Tokenizer:
    return recorded_tokenizer("llama-spm")


def test_texts_become_the_ids_that_transformers_and_llama_cpp_give(recorded):
    document, tokenizer = recorded
    assert len(document["cases"]) >= 15
    for case in document["cases"]:
        wanted = renumbered(document, case["ids"])
        assert tokenizer.encode(case["text"], special=case.get("special", False)) == wanted, (case["by"], case["text"])


def test_recorded_ids_decode_to_their_texts(recorded):
    document, tokenizer = recorded
    for case in document["cases"]:
        if "special" not in case:
            assert tokenizer.decode(renumbered(document, case["ids"])) == case["text"]


def test_the_recorded_vocabularies_cover_every_kind_of_merging():
    pres = {vector(name)["metadata"].get("tokenizer.ggml.pre") for name in NAMES}
    assert {"smollm", "gpt-2", "qwen2", "llama-bpe", "deepseek-llm", "deepseek-coder", "falcon", "default"} <= pres


def test_text_in_decomposed_form_is_composed_for_qwen2_only():
    def ids(pre: str) -> list[int]:
        return tiny_tokenizer(pre=pre).encode("e\u0301")

    assert ids("qwen2") == [0xC3, 0xA9]
    assert ids("qwen35") == ids("gpt-2") == [ord("e"), 0xCC, 0x81]


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_compiles_and_loses_nothing(pre):
    text = "Hello  wörld's 12345\n\n\t日本語 ʕ•ᴥ•ʔ ...!\r\n  (x|y) \u00a0end "
    tokenizer = tiny_tokenizer(pre=pre)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_unknown_pre_tokenizer_is_named_with_the_known_ones():
    with pytest.raises(TokenizerError, match="'martian'") as caught:
        tiny_tokenizer(pre="martian")
    assert "smollm" in (caught.value.hint or "")


def test_control_tokens_are_read_only_when_asked(smollm):
    text = "<|im_start|>user"
    assert smollm.encode(text)[0] == smollm.token_id("<|im_start|>")
    assert smollm.token_id("<|im_start|>") not in smollm.encode(text, special=False)
    assert smollm.decode(smollm.encode(text, special=False)) == text


def test_control_tokens_are_left_out_of_text_unless_asked_for():
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("hello<|im_end|>hello")
    assert tokenizer.decode(ids) == "hellohello"
    assert tokenizer.decode(ids, skip_special=False) == "hello<|im_end|>hello"


def test_every_end_of_turn_is_known(smollm):
    assert smollm.eos == {smollm.token_id("<|im_end|>"), smollm.token_id("<|endoftext|>")}
    tokens = [*tiny_metadata()["tokenizer.ggml.tokens"], "<stop>"]
    assert tiny_tokenizer(tokens=tokens, token_type=None, eot_token_id=len(tokens) - 1).eos == {
        len(tokens) - 2,
        len(tokens) - 1,
    }


def test_a_gemma_vocabulary_keeps_spaces_and_newlines_and_ends_a_turn_at_its_mark(tmp_path):
    path = write_gguf(tmp_path / "gemma.gguf", gemma_metadata())
    tokenizer = load_tokenizer(path)
    assert tokenizer.eos == {1, 5}
    text = ChatTemplate.of(path).render([{"role": "user", "content": " hi hi\n\nhi \t\u00e9"}])
    ids = tokenizer.encode(text, bos=True)
    spelled = [tokenizer.token_text(id) for id in ids]
    assert spelled[:7] == ["<bos>", "<start_of_turn>", "user", "\n", "hi", "\u2581hi", "\n\n"]
    assert spelled[7:14] == ["hi", "\u2581", "<0x09>", "<0xC3>", "<0xA9>", "<end_of_turn>", "\n"]
    assert tokenizer.decode(ids, skip_special=False) == text
    assert tokenizer.begin == 2


def test_bos_comes_first_once_and_only_where_the_model_expects_it(smollm, llama):
    assert smollm.encode("hi", bos=True) == smollm.encode("hi")
    assert llama.encode("hi", bos=True) == [llama.bos, *llama.encode("hi")]
    assert llama.encode("<s>hi", bos=True).count(llama.bos) == 1
    assert tiny_tokenizer(add_bos_token=True).encode("", bos=True) == [tiny_tokenizer().bos]


def test_token_bytes_spell_the_text_exactly(smollm, llama):
    text = "naïve 😀\n\x00 \u2581"
    for tokenizer, prefix in ((smollm, ""), (llama, " ")):
        spelled = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text)))
        assert spelled == (prefix + text).replace("\u2581", " " if prefix else "\u2581").encode("utf-8")


def test_each_byte_token_stands_for_its_byte(llama):
    assert [llama.token_bytes(llama.token_id(f"<0x{byte:02X}>")) for byte in range(256)] == [
        bytes([byte]) for byte in range(256)
    ]
    assert [tiny_tokenizer().token_bytes(byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]


def test_ids_without_a_token_stand_for_nothing_and_negative_ones_are_refused():
    tokenizer = tiny_tokenizer()
    assert tokenizer.token_bytes(tokenizer.vocabulary) == b""
    assert tokenizer.decode([tokenizer.vocabulary + 1000]) == ""
    with pytest.raises(TokenizerError, match="-1"):
        tokenizer.token_bytes(-1)


def test_a_sentencepiece_text_starts_without_the_space_of_its_first_word_unless_it_continues_another(llama):
    ids = llama.encode("Hello world")
    assert llama.decode(ids) == "Hello world"
    assert llama.decode(ids, continuing=True) == " Hello world"


def test_a_stream_never_shows_half_a_character(smollm):
    stream = smollm.stream()
    shown = [stream.push(id) for id in smollm.encode("a😶\u200d🌫️é")]
    assert "\ufffd" not in "".join(shown)
    assert "" in shown, "no character was spread over tokens; choose another text"


@settings(max_examples=200, deadline=None)
@given(data=st.data(), name=st.sampled_from(["smollm2-135m-instruct", "llama-spm"]), continuing=st.booleans())
def test_streaming_any_tokens_gives_what_decoding_the_whole_gives(data, name, continuing):
    tokenizer = _CACHE.setdefault(name, recorded_tokenizer(name))
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocabulary + 2), max_size=40))
    stream = tokenizer.stream(continuing=continuing)
    pieces = [*map(stream.push, ids), stream.flush()]
    whole = b"".join(b"" if id in tokenizer.special else tokenizer.token_bytes(id) for id in ids)
    text = whole.decode("utf-8", errors="replace")
    wanted = text.removeprefix(" ") if name == "llama-spm" and not continuing else text
    assert "".join(pieces) == wanted == tokenizer.decode(ids, continuing=continuing)


_CACHE: dict[str, Tokenizer] = {}


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=80))
def test_any_text_survives_encoding_and_decoding(text):
    tokenizer = _CACHE.setdefault("tiny", tiny_tokenizer())
    assert tokenizer.decode(tokenizer.encode(text, special=False), skip_special=False) == text


def test_bytes_that_are_no_utf8_become_replacement_characters():
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode([0xF0, 0x9F, ord("a"), 0xFF]) == "\ufffda\ufffd"


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_tokenizer_loads_again_and_is_the_same(name, tmp_path: Path):
    before = recorded_tokenizer(name)
    before.save(tmp_path)
    after = load_tokenizer(tmp_path)
    for case in vector(name)["cases"]:
        special = case.get("special", False)
        assert after.encode(case["text"], special=special, bos=True) == before.encode(
            case["text"], special=special, bos=True
        )
    facts = [(t.vocabulary, t.bos, t.eos, t.add_bos, t.special) for t in (before, after)]
    assert facts[0] == facts[1]
    ids = list(range(0, before.vocabulary, 7))
    assert after.decode(ids) == before.decode(ids)


def test_saving_keeps_a_generation_config_that_is_there(tmp_path: Path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 3}')
    tiny_tokenizer().save(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": 3}
    assert not list(tmp_path.glob("*.partial"))


def test_a_gguf_file_and_a_directory_made_from_it_agree(tmp_path: Path):
    file = write_gguf(tmp_path / "tiny.gguf", {"general.architecture": "llama", **tiny_metadata()})
    one = load_tokenizer(file)
    one.save(tmp_path)
    assert load_tokenizer(tmp_path).encode("hello w<|im_end|>") == one.encode("hello w<|im_end|>")


def test_truncation_and_padding_written_in_a_file_are_ignored(tmp_path: Path):
    tiny_tokenizer().save(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    document["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    document["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert len(load_tokenizer(tmp_path).encode("xyz")) == 3


def test_eos_ids_of_all_files_of_a_directory_are_joined(tmp_path: Path):
    tiny_tokenizer().save(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert load_tokenizer(tmp_path).eos == {5, 6, 7, tiny_tokenizer().token_id("<|im_end|>")}


def test_a_directory_without_a_tokenizer_is_one_clear_error(tmp_path: Path):
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.hint
    with pytest.raises(TokenizerError, match="no such file"):
        load_tokenizer(tmp_path / "nothing")


def test_metadata_without_a_vocabulary_is_one_clear_error(tmp_path: Path):
    with pytest.raises(TokenizerError, match="holds no tokenizer"):
        load_tokenizer(write_gguf(tmp_path / "bare.gguf", {"general.architecture": "llama"}))


def test_a_recorded_vocabulary_is_small_but_complete():
    metadata = metadata_of(vector("gpt-2"))
    assert len(metadata["tokenizer.ggml.tokens"]) < 3000


def test_a_metaspace_decoder_is_followed_and_its_leading_space_dropped(tmp_path: Path):
    before = recorded_tokenizer("llama-spm")
    before.save(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    ids = before.encode("Hello world")
    for scheme, wanted in (("first", "Hello world"), ("never", " Hello world")):
        document["decoder"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": True}
        (tmp_path / "tokenizer.json").write_text(json.dumps(document))
        assert load_tokenizer(tmp_path).decode(ids) == wanted


def test_threads_that_read_control_tokens_and_threads_that_do_not_share_a_tokenizer(smollm):
    text = "<|im_start|>user " * 50
    wanted = {special: smollm.encode(text, special=special) for special in (True, False)}
    wrong: list[bool] = []

    def work(special: bool) -> None:
        wrong.extend(special for _ in range(200) if smollm.encode(text, special=special) != wanted[special])

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wanted[True] != wanted[False] and not wrong
