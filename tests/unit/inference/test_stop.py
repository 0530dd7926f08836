"""Stop strings, wherever the text is cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_inference.engine.interface import TokenLogprob
from llm_inference.engine.stop import HeldLogprobs, StopMatcher

TEXT = st.text(alphabet="abc", max_size=30)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=3)


def cut(text, points):
    edges = [0, *sorted(point % (len(text) + 1) for point in points), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def run(stops, pieces):
    matcher = StopMatcher(stops)
    out = [matcher.push(piece) for piece in pieces]
    return out, matcher


@given(TEXT, STOPS, st.lists(st.integers(0, 100), max_size=8))
def test_text_ends_before_the_first_stop_string_however_it_is_cut(text, stops, points):
    out, matcher = run(stops, cut(text, points))
    found = [text.find(stop) for stop in stops if stop in text]
    assert matcher.matched == bool(found)
    # A stop string that ends earlier may win over one that starts earlier but ends later, so the
    # text never goes beyond the first start, and what was let through is a prefix of the text.
    got = "".join(out) + matcher.flush()
    assert text.startswith(got)
    if found:
        assert not any(stop in got for stop in stops)
    else:
        assert got == text


@given(TEXT, STOPS, st.lists(st.integers(0, 100), max_size=8))
def test_no_more_is_held_back_than_a_stop_string_could_need(text, stops, points):
    out, matcher = run(stops, cut(text, points))
    if not matcher.matched:
        held = len(text) - len("".join(out))
        assert held <= max((len(stop) - 1 for stop in stops), default=0)


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        (["END"], ["one E", "N", "D two"], "one "),
        (["END"], ["one E", "N", "X"], "one ENX"),
        (["\n\n"], ["a\n", "b\n", "\nc"], "a\nb"),
        (["b", "abc"], ["ab"], "a"),
        ([], ["a", "b"], "ab"),
    ],
)
def test_examples(stops, pieces, expected):
    out, matcher = run(stops, pieces)
    assert "".join(out) + matcher.flush() == expected


def test_text_without_the_start_of_a_stop_string_is_let_through_at_once():
    assert StopMatcher(["END"]).push("hello") == "hello"


def tokens(held):
    return [logprob.token for logprob in held]


def push(held, *texts):
    for token, text in enumerate(texts):
        held.push(TokenLogprob(token=token, logprob=-1.0), text)


def test_a_token_goes_with_the_last_of_its_text():
    held = HeldLogprobs()
    push(held, "ab", "cd", "ef")
    assert tokens(held.release("abc")) == [0]
    assert tokens(held.release("")) == []
    assert tokens(held.release("def")) == [1, 2]
    assert tokens(held.flush()) == []


def test_a_token_without_text_goes_with_the_text_that_follows():
    held = HeldLogprobs()
    push(held, "a", "", "", "é", "")
    assert tokens(held.release("a")) == [0]
    assert tokens(held.release("é")) == [1, 2, 3]
    assert tokens(held.flush()) == [4]


def test_of_a_stop_string_only_the_token_it_begins_in_is_told():
    held = HeldLogprobs()
    push(held, "ab", "cd", "ef", "gh")
    assert tokens(held.release("ab")) == [0]
    assert tokens(held.cut("c")) == [1]
    assert tokens(held.cut("")) == []


def test_a_stop_string_at_a_border_takes_its_tokens_with_it():
    held = HeldLogprobs()
    push(held, "ab", "cd", "ef")
    assert tokens(held.cut("ab")) == [0]
