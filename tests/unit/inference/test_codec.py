"""Detokenising piece by piece, with a byte-level tokenizer that knows bytes only."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from llm_inference.engine.codec import Detokenizer, HuggingFaceCodec

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENIZER = Tokenizer(models.BPE({char: n for n, char in enumerate(ALPHABET)}, []))
TOKENIZER.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
TOKENIZER.decoder = decoders.ByteLevel()
TOKENIZER.add_special_tokens([AddedToken("<end>", special=True)])


@given(st.text(max_size=40))
def test_pieces_are_whole_characters_and_make_the_text(text):
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.push(token) for token in TOKENIZER.encode(text).ids]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces if "\ufffd" not in text)


@given(st.lists(st.integers(0, len(ALPHABET)), max_size=40))
def test_any_tokens_a_model_may_come_up_with_are_read(tokens):
    detokenizer = Detokenizer(TOKENIZER)
    for token in tokens:
        detokenizer.push(token).encode()


def test_special_tokens_give_no_text():
    detokenizer = Detokenizer(TOKENIZER)
    tokens = [TOKENIZER.token_to_id("<end>"), *TOKENIZER.encode("a").ids]
    assert "".join(map(detokenizer.push, tokens)) == "a"


def test_an_unfinished_character_is_held_back():
    detokenizer = Detokenizer(TOKENIZER)
    *most, last = TOKENIZER.encode("é").ids
    assert [detokenizer.push(token) for token in most] == [""]
    assert detokenizer.push(last) == "é"


def metaspace_tokenizer():
    vocabulary = {"▁Hello": 0, "▁world": 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@pytest.mark.parametrize(("context", "expected"), [((), "world"), ((0,), " world")])
def test_a_continuation_keeps_its_leading_space_and_an_answer_has_none(context, expected):
    backend = metaspace_tokenizer()
    codec = HuggingFaceCodec(SimpleNamespace(backend_tokenizer=backend, chat_template=None))
    assert codec.detokenizer(context).push(1) == expected


def codec_of(backend, template=None):
    fake = SimpleNamespace(backend_tokenizer=backend, chat_template=template, eos_token_id=None)
    return HuggingFaceCodec(fake)


@given(st.text(max_size=40))
def test_the_bytes_of_its_tokens_are_the_text(text):
    codec = codec_of(TOKENIZER)
    assert b"".join(map(codec.token_bytes, codec.encode(text))) == text.encode()


def test_the_bytes_of_tokens_that_are_spelled_otherwise():
    vocabulary = {"▁Hello": 0, "<0xC3>": 1, "<0xA9>": 2, "é": 3}
    codec = codec_of(Tokenizer(models.WordLevel(vocabulary)))
    assert [codec.token_bytes(n) for n in range(5)] == [
        b" Hello",
        b"\xc3",
        b"\xa9",
        b"\xc3\xa9",
        b"",
    ]


def test_a_token_that_opens_a_tool_call_is_told_and_others_are_not():
    backend = Tokenizer.from_str(TOKENIZER.to_str())
    backend.add_special_tokens(["[TOOL_CALLS]", "<other>"])
    codec = codec_of(backend)
    tokens = codec.encode("a[TOOL_CALLS]<other>é")
    push = codec.detokenizer().push
    assert "".join(map(push, tokens)) == "a[TOOL_CALLS]é"
    assert codec.decode(tokens) == "a[TOOL_CALLS]<other>é"
    assert codec.added_token("[TOOL_CALLS]") == tokens[1]
    assert codec.added_token("a") is None
