"""Grammars: what is compiled, what is refused, and each sequence's own way through one."""

import ctypes
import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from llm_inference.engine.grammar import GrammarCompiler
from llm_inference.engine.interface import Grammar, GrammarError

# A token for each byte, and an end.
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
END = len(ALPHABET)
TOKENIZER = Tokenizer(
    models.BPE(
        vocab={**{byte: token for token, byte in enumerate(ALPHABET)}, "<end>": END}, merges=[]
    )
)
TOKENIZER.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
TOKENIZER.decoder = decoders.ByteLevel()
TOKENIZER.add_special_tokens(["<end>"])


@pytest.fixture(scope="module")
def compiler():
    return GrammarCompiler(tokenizer=TOKENIZER.to_str, vocabulary=END + 20, eos=frozenset({END}))


def allowed(matcher):
    """The characters that may come next, the end as None."""
    size = -(-(END + 20) // 32) * 4
    memory = (ctypes.c_uint8 * size)()
    matcher.write_mask(ctypes.addressof(memory), size)
    tokens = [token for token in range(size * 8) if memory[token // 8] >> token % 8 & 1]
    return {None if token == END else TOKENIZER.decode([token]) for token in tokens}


def accept(matcher, text):
    return all(matcher.accept(token) for token in TOKENIZER.encode(text).ids)


def test_a_sequence_goes_its_own_way(compiler):
    grammar = compiler.compile(Grammar(kind="regex", source="a[bc]d?"))
    one, other = grammar.matcher(), grammar.matcher()
    assert allowed(one) == {"a"}
    assert accept(one, "ab")
    assert allowed(one) == {"d", None}
    assert allowed(other) == {"a"}
    assert one.accept(END)
    assert one.finished
    assert not other.finished


def test_a_complete_text_is_finished_without_an_end(compiler):
    matcher = compiler.compile(Grammar(kind="choice", source='["yes", "no"]')).matcher()
    assert allowed(matcher) == {"y", "n"}
    assert accept(matcher, "no")
    assert matcher.finished


def test_what_is_not_allowed_is_an_error_that_stays(compiler):
    matcher = compiler.compile(Grammar(kind="regex", source="abc")).matcher()
    assert not accept(matcher, "x")
    assert matcher.error
    assert not accept(matcher, "a")


def test_a_json_object_is_any_object_and_nothing_else(compiler):
    grammar = compiler.compile(Grammar(kind="json_object"))
    assert allowed(grammar.matcher()) == {"{"}
    matcher = grammar.matcher()
    assert accept(matcher, json.dumps({"a": [1, {"b": None}], "c": "d"}))
    assert matcher.finished


def test_white_space_comes_to_an_end(compiler):
    matcher = compiler.compile(Grammar(kind="json_object")).matcher()
    assert accept(matcher, "{" + " " * 16)
    assert " " not in allowed(matcher)


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("json_schema", "{"),
        ("json_schema", "5"),
        ("json_schema", '{"type": "nonsense"}'),
        ("json_schema", '{"not": {"type": "string"}, "if": {}}'),
        ("json_schema", '{"$ref": "http://example.com/schema"}'),
        ("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000),
        ("json_schema", '{"enum": [' + "[" * 400 + "]" * 400 + "]}"),
        ("regex", "[a-z"),
        ("regex", "a(?=b)"),
        ("regex", "(" * 5000 + "a" + ")" * 5000),
        ("choice", "[]"),
        ("choice", '["a", 5]'),
        ("choice", '"a"'),
        ("lark", "start: nothing"),
        ("lark", "start: " + "(" * 50_000 + '"a"' + ")" * 50_000),
        ("regex", "a" * 200_000),
    ],
)
def test_what_cannot_be_kept_to_is_refused_in_a_sentence(compiler, kind, source):
    with pytest.raises(GrammarError) as refusal:
        compiler.compile(Grammar(kind=kind, source=source))
    assert 5 < len(str(refusal.value)) < 400
    assert "\n" not in str(refusal.value)


def test_a_grammar_is_compiled_once(compiler):
    grammar = Grammar(kind="regex", source="x+y")
    assert compiler.compile(grammar) is compiler.compile(Grammar(kind="regex", source="x+y"))
