"""Choosing tokens: distributions, truncation, seeds; of torch's logits and of the library's."""

import ctypes
import math

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from llm_inference.engine import native, sampling
from llm_inference.engine.interface import SamplingParams
from llm_inference.engine.native_sampling import NativeSampler
from llm_inference.engine.sampling import uniform
from llm_inference.engine.step import Draw
from llm_inference.engine.torch_decoder import array_of


@pytest.fixture(params=["torch", "native"], autouse=True)
def chooser(request, monkeypatch):
    """Every test of this file is of both."""
    if request.param == "torch":
        return
    if native.library() is None:
        pytest.skip("the library needs AVX2")

    def choose(logits, draws):
        logits = logits.float().contiguous()
        sampler = NativeSampler(native.library(), vocabulary=logits.shape[1])
        return sampler.choose(array_of(logits), draws)

    monkeypatch.setattr(sampling, "choose", choose)


def draw(seed=0, step=0, **parameters):
    return Draw(sampling=SamplingParams(**parameters), seed=seed, step=step)


def choose(logits, draws):
    """The tokens alone."""
    choices = sampling.choose(logits, draws)
    return [None if choice is None else choice.token for choice in choices]


def sample(logits, number, **parameters):
    """How often each token comes up in `number` draws with different seeds."""
    batch = torch.tensor([logits] * number)
    tokens = choose(batch, [draw(seed=seed, **parameters) for seed in range(number)])
    return [tokens.count(token) for token in range(len(logits))]


def test_greedy_takes_the_most_likely():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    assert choose(logits, [draw(temperature=0), draw(top_k=1)]) == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_up_as_often_as_softmax_says(temperature):
    logits = [0.0, 1.0, 2.0, -1.0, 0.5]
    number = 20_000
    found = sample(logits, number, temperature=temperature)
    expected = (torch.tensor(logits) / temperature).softmax(0) * number
    chi_square = sum(
        (got - want) ** 2 / want for got, want in zip(found, expected.tolist(), strict=True)
    )
    assert chi_square < 23.5  # 4 degrees of freedom, p = 0.0001; the seeds are fixed


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
    found = sample(logits, 4000, top_p=0.7)
    assert found[2:] == [0, 0]
    assert abs(found[0] / 4000 - 0.5 / 0.8) < 0.03


def test_top_p_counts_within_top_k():
    # Of the top two, the first has 0.4 / 0.7 = 0.57: with top_p 0.5 it is alone.
    logits = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
    assert sample(logits, 500, top_k=2, top_p=0.5) == [500, 0, 0, 0]
    assert sample(logits, 500, top_p=0.5)[1] > 0


def test_top_k_keeps_k():
    found = sample([0.5, 0.0, 0.4, 0.1, 0.3, 0.2], 3000, top_k=3)
    assert [found[1], found[3], found[5]] == [0, 0, 0]
    assert min(found[0], found[2], found[4]) > 500


def test_tokens_as_likely_as_the_last_one_kept_are_kept():
    found = sample([1.0, 0.0, 0.0, -1.0], 3000, top_k=2)
    assert found[3] == 0
    assert min(found[:3]) > 200


def test_min_p_is_relative_to_the_most_likely():
    logits = [math.log(p) for p in (0.5, 0.26, 0.24)]
    found = sample(logits, 1000, min_p=0.5)
    assert found[2] == 0
    assert found[1] > 0


def test_parameters_are_each_rows_own():
    logits = torch.tensor([[0.0, 1.0, 5.0, 2.0]] * 4)
    tokens = choose(
        logits, [draw(temperature=0), draw(top_k=1), draw(top_p=1e-9), draw(temperature=1.5)]
    )
    assert tokens[:3] == [2, 2, 2]


def test_top_p_beyond_the_first_candidates_is_exact():
    # 5000 equal tokens: top_p 0.9 keeps 4500 of them, more than are looked at first.
    logits = torch.zeros((400, 5000))
    logits[:, 4999] = -100.0
    tokens = choose(logits, [draw(seed=seed, top_p=0.9) for seed in range(400)])
    assert len(set(tokens)) > 350
    assert 4999 not in tokens


def test_a_seed_gives_the_same_token_in_any_company():
    torch.manual_seed(0)
    logits = torch.randn(6, 1000)
    draws = [
        draw(seed=5, step=3, temperature=0.8),
        draw(temperature=0),
        draw(seed=9, top_p=0.5),
        draw(seed=1, top_k=50),
        draw(seed=7),
        draw(seed=8, min_p=0.01),
    ]
    together = choose(logits, draws)
    alone = [choose(logits[row : row + 1], [draws[row]])[0] for row in range(6)]
    order = [3, 0, 5, 1, 4, 2]
    shuffled = choose(logits[order], [draws[row] for row in order])
    assert together == alone
    assert [together[row] for row in order] == shuffled


def test_steps_and_seeds_give_different_tokens():
    logits = torch.zeros((1, 1000))
    tokens = {choose(logits, [draw(seed=s, step=t)])[0] for s in range(10) for t in range(10)}
    assert len(tokens) > 80


def test_uniform_numbers_are_uniform():
    seeds, steps = torch.arange(100_000) - 50_000, torch.tensor(range(100_000)) % 7
    numbers = uniform(seeds, steps)
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    counts = torch.histc(numbers, 100, 0, 1)
    assert ((counts - 1000) ** 2 / 1000).sum() < 180  # 99 degrees of freedom, p < 1e-6


def test_rows_that_are_not_finite_give_no_token():
    logits = torch.zeros((4, 5))
    logits[0, 2] = math.nan
    logits[1, 1] = math.inf
    logits[2] = -math.inf
    tokens = choose(logits, [draw(), draw(temperature=0), draw(top_p=0.5), draw(temperature=0)])
    assert tokens == [None, None, None, 0]


def test_float16_and_bfloat16_logits_are_taken():
    for dtype in (torch.float16, torch.bfloat16):
        logits = torch.tensor([[0.0, 30.0]], dtype=dtype)
        assert choose(logits, [draw(temperature=0.01)]) == [1]


def grown(prompt, tokens, **parameters):
    """A draw of a sequence that has generated `tokens`."""
    return Draw(
        sampling=SamplingParams(temperature=0, **parameters),
        seed=0,
        step=len(tokens),
        prompt=prompt,
        tokens=list(tokens),
    )


def test_repetition_is_penalized_as_transformers_does():
    torch.manual_seed(1)
    for _ in range(20):
        logits = torch.randn(3, 12)
        draws = [
            grown([1, 2], [3, 3], repetition_penalty=1.8),
            grown([5], [], repetition_penalty=0.4),
            grown([7, 7, 8], [9], repetition_penalty=1.0),
        ]
        expected = [
            RepetitionPenaltyLogitsProcessor(draw.sampling.repetition_penalty)(
                torch.tensor([[*draw.prompt, *draw.tokens]]), logits[row : row + 1].clone()
            )
            .argmax()
            .item()
            for row, draw in enumerate(draws)
        ]
        assert choose(logits, draws) == expected


def test_presence_is_taken_once_and_frequency_each_time():
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    assert choose(logits, [grown([0], [], presence_penalty=5.0)]) == [0]
    assert choose(logits, [grown([], [0], presence_penalty=0.9)]) == [0]
    assert choose(logits, [grown([], [0, 0, 0], presence_penalty=0.9)]) == [0]
    assert choose(logits, [grown([], [0], frequency_penalty=0.9)]) == [0]
    assert choose(logits, [grown([], [0, 0], frequency_penalty=0.9)]) == [1]
    assert choose(logits, [grown([], [1, 1, 1], frequency_penalty=-0.4)]) == [1]


def test_counts_follow_their_sequences_through_changing_batches():
    # Flat logits under a frequency penalty give each token once before any comes again.
    logits = torch.arange(0, -1, -0.1).unsqueeze(0)
    draws = [grown([], [], frequency_penalty=1.5) for _ in range(4)]
    generated = [[] for _ in draws]
    for step in range(10):
        batch = [row for row in range(4) if step == 0 or (row + step) % 3 or step > 7]
        for row, token in zip(
            batch,
            choose(logits.repeat(len(batch), 1), [draws[row] for row in batch]),
            strict=True,
        ):
            # A step that failed is run again, and counts once.
            assert choose(logits, [draws[row]]) == [token]
            draws[row].advance(token)
            generated[row].append(token)
    assert all(tokens == list(range(len(tokens))) for tokens in generated)
    assert min(map(len, generated)) > 5


def test_biases_are_added_to_greedy_choices_too():
    logits = torch.tensor([[2.0, 1.0, 0.0]] * 3)
    draws = [
        draw(temperature=0, logit_bias={2: 3.0}),
        draw(temperature=0, logit_bias={0: -100.0}),
        draw(temperature=0),
    ]
    assert choose(logits, draws) == [2, 1, 0]
    assert logits.tolist() == [[2.0, 1.0, 0.0]] * 3


def test_log_probabilities_are_told_of_the_rows_that_ask():
    torch.manual_seed(2)
    logits = torch.randn(4, 50)
    draws = [
        draw(temperature=0),
        Draw(sampling=SamplingParams(temperature=2.0), seed=4, logprobs=0),
        Draw(sampling=SamplingParams(temperature=0, logit_bias={7: 50.0}), seed=4, logprobs=3),
        draw(seed=5),
    ]
    choices = sampling.choose(logits, draws)
    expected = logits.log_softmax(-1)
    assert choices[0].logprob is None
    assert choices[1].logprob == pytest.approx(expected[1, choices[1].token].item(), abs=1e-5)
    assert choices[1].top == ()
    assert choices[2].token == 7
    assert choices[2].logprob == pytest.approx(expected[2, 7].item(), abs=1e-5)
    values, ids = expected[2].topk(3)
    assert [token for token, _ in choices[2].top] == ids.tolist()
    assert [value for _, value in choices[2].top] == pytest.approx(values.tolist(), abs=1e-5)


class OnlyThese:
    """Lets some tokens through."""

    error = None
    finished = False

    def __init__(self, *tokens):
        self.tokens = tokens

    def write_mask(self, address, size):
        bits = bytearray(size)
        for token in self.tokens:
            bits[token // 8] |= 1 << token % 8
        ctypes.memmove(address, bytes(bits), size)

    def accept(self, token):
        return token in self.tokens


def test_a_matcher_bounds_its_own_row_only():
    logits = torch.randn(200, 70)
    kept = OnlyThese(31, 32, 69)
    draws = [
        Draw(
            sampling=SamplingParams(temperature=3.0), seed=seed, matcher=kept if seed % 2 else None
        )
        for seed in range(200)
    ]
    tokens = choose(logits, draws)
    assert set(tokens[1::2]) == {31, 32, 69}
    assert len(set(tokens[::2])) > 30
    greedy_draw = Draw(sampling=SamplingParams(temperature=0), seed=0, matcher=OnlyThese(69))
    assert choose(logits[:1], [greedy_draw]) == [69]


def test_choices_do_not_change_with_the_logits_after_them():
    # A runner's logits are the same memory from step to step.
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    choices = sampling.choose(logits, [Draw(sampling=SamplingParams(temperature=0), seed=0)])
    logits.fill_(torch.nan)
    assert choices[0].token == 2
