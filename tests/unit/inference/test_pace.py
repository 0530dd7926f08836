"""How many prompt tokens go into a step, and when who finds no room may come again."""

import pytest

from llm_inference.engine.pace import Pace, Rate


def paced(chunk, decode, token):
    pace = Pace(chunk)
    pace.note(decode, prompt_tokens=0, decoded=True)
    pace.note(decode + 64 * token, prompt_tokens=64, decoded=True)
    return pace


@pytest.mark.parametrize(
    ("chunk", "decode", "token", "budget"),
    [
        (256, 0.050, 0.001, 64),  # 100 ms hold 100 tokens
        (256, 0.050, 0.0004, 128),
        (256, 0.050, 0.0001, 256),
        (256, 0.010, 0.010, 64),  # never less than what is worth a pass
        (2048, 0.020, 0.00003, 1024),
        (32, 0.010, 1.0, 32),
    ],
)
def test_a_step_reads_what_two_decode_steps_cost(chunk, decode, token, budget):
    assert paced(chunk, decode, token).budget(decoding=True) == budget


def test_where_nobody_waits_it_reads_a_whole_chunk():
    assert paced(256, 0.01, 0.01).budget(decoding=False) == 256


def test_before_anything_was_measured_it_reads_a_whole_chunk():
    pace = Pace(256)
    assert pace.budget(decoding=True) == 256
    pace.note(1.0, prompt_tokens=10, decoded=True)
    assert pace.budget(decoding=True) == 256


def test_prompts_alone_say_what_a_token_costs():
    pace = Pace(256)
    pace.note(0.05, prompt_tokens=0, decoded=True)
    pace.note(0.256, prompt_tokens=256, decoded=False)
    assert pace.budget(decoding=True) == 64


@pytest.mark.parametrize(
    ("seconds", "number", "expected"),
    [(0.01, 0, 1), (0.01, 30, 1), (0.5, 3, 2), (0.5, 40, 20), (60, 40, 300)],
)
def test_when_to_come_again_follows_what_each_takes(seconds, number, expected):
    rate = Rate(places=4)
    rate.note(seconds)
    assert rate.retry_after(number) == expected


def test_a_rate_follows_what_happens_lately():
    rate = Rate(places=4)
    for seconds in [10.0, *[1.0] * 50]:
        rate.note(seconds)
    assert rate.retry_after(10) == 11  # ceil of a little more than 10


def test_before_anything_finished_each_place_is_taken_to_be_free_in_a_second():
    assert Rate(places=4).retry_after(10) == 3
