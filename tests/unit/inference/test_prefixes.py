"""Which rows' contents are used again, and which are given up."""

import random

from llm_inference.engine.prefixes import Prefixes, Source, common_tokens, key_of


def test_common_tokens_are_counted_wherever_two_keys_part():
    numbers = random.Random(1)
    for _ in range(300):
        common, one, other = (numbers.choice([0, 1, 7, 255, 256, 257, 700]) for _ in range(3))
        shared = [numbers.randrange(1 << 20) for _ in range(common)]
        first = key_of([*shared, *range(1 << 21, (1 << 21) + one)])
        second = key_of([*shared, *range(1 << 22, (1 << 22) + other)])
        assert common_tokens(first, second) == common
        assert common_tokens(first, first) == common + one


def test_the_longest_beginning_is_found_and_a_token_is_left_to_read():
    prefixes = Prefixes([10, 11])
    tokens = list(range(100))
    assert prefixes.place(key_of(tokens[:40])) in (10, 11)
    assert prefixes.find(key_of(tokens), [Source(row=2, key=key_of(tokens[:60]))]) == (2, 60)
    kept_row, length = prefixes.find(key_of(tokens[:40]), [])
    assert (kept_row in (10, 11), length) == (True, 39)


def test_a_short_beginning_is_not_worth_a_copy():
    prefixes = Prefixes([10])
    prefixes.place(key_of(range(50)))
    assert prefixes.find(key_of([*range(15), *range(500, 600)]), []) is None
    assert prefixes.find(key_of([*range(16), *range(500, 600)]), []) == (10, 16)
    # A whole prompt, however short, costs no pass at all.
    assert prefixes.find(key_of([1, 2, 3]), [Source(row=0, key=key_of([1, 2, 3]))]) == (0, 2)
    assert prefixes.find(key_of([1]), [Source(row=0, key=key_of([1]))]) is None


def test_the_least_recently_used_row_is_given_up():
    prefixes = Prefixes([10, 11])
    one, two, three = (key_of(range(n, n + 50)) for n in (0, 1000, 2000))
    first, second = prefixes.place(one), prefixes.place(two)
    assert {first, second} == {10, 11}
    assert prefixes.find(one, []) == (first, 49)
    assert prefixes.place(three) == second
    assert prefixes.find(two, []) is None
    assert prefixes.find(one, []) == (first, 49)


def test_what_goes_on_takes_the_row_of_what_it_goes_on_from():
    prefixes = Prefixes([10, 11])
    row = prefixes.place(key_of(range(50)))
    assert prefixes.place(key_of(range(80))) == row
    assert prefixes.place(key_of(range(60))) is None
    assert prefixes.find(key_of(range(81)), []) == (row, 80)
    other = prefixes.place(key_of(range(1000, 1050)))
    assert other not in (row, None)


def test_rows_that_are_dropped_hold_nothing():
    prefixes = Prefixes([10])
    prefixes.place(key_of(range(50)))
    prefixes.drop(10)
    assert prefixes.find(key_of(range(50)), []) is None
    assert prefixes.place(key_of(range(50))) == 10


def test_without_rows_nothing_is_kept():
    prefixes = Prefixes([])
    assert prefixes.place(key_of(range(50))) is None
    assert Prefixes([1]).place(key_of(range(15))) is None
