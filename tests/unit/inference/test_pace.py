"""How many prompt tokens go into a step."""

import pytest

from llm_inference.engine.pace import Pace


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
