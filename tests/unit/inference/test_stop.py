"""Stop strings, wherever the text is cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_inference.engine.stop import StopMatcher

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
