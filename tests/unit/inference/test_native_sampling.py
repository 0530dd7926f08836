"""The library's choices are those of torch's, and both are those that the parameters describe."""

import ctypes
import random

import pytest
import torch

from llm_inference.engine import native, sampling
from llm_inference.engine.cpu_runner import CpuRunner
from llm_inference.engine.interface import SamplingParams
from llm_inference.engine.native_sampling import NativeSampler
from llm_inference.engine.sampling import uniform
from llm_inference.engine.step import Draw
from llm_inference.engine.torch_decoder import array_of, from_torch
from tests.unit.inference.test_native import VOCABULARY, build

if native.library() is None:
    pytest.skip("the library needs AVX2", allow_module_level=True)

SIZES = [1, 2, 7, 8, 33, 1000, 1024, 1025, 49152, 151_936]
# Both add up in another order, and neither in infinite precision.
CLOSE = 2e-6


class Bits:
    """Lets some tokens through."""

    error = None
    finished = False

    def __init__(self, tokens):
        self.tokens = tokens

    def write_mask(self, address, size):
        bits = bytearray(size)
        for token in self.tokens:
            bits[token // 8] |= 1 << token % 8
        ctypes.memmove(address, bytes(bits), size)

    def accept(self, token):
        return token in self.tokens


def choose(logits, draws):
    sampler = NativeSampler(native.library(), vocabulary=logits.shape[1])
    return sampler.choose(array_of(logits), draws)


def logits_of(numbers, rows, vocabulary, kind):
    generator = torch.Generator().manual_seed(numbers.randrange(1 << 30))
    logits = torch.randn((rows, vocabulary), generator=generator) * numbers.choice([0.1, 1, 3, 10])
    if kind == "ties":
        return logits.round()
    if kind == "flat":
        return (logits * 0.02).round(decimals=2)
    if kind == "impossible":
        logits[torch.rand(logits.shape, generator=generator) < 0.4] = -torch.inf
        logits[:, numbers.randrange(vocabulary)] = 0.0
    return logits


def draw_of(numbers, vocabulary, **fixed):
    def some(*values):
        return numbers.choice(values)

    def tokens(most):
        return numbers.choices(range(vocabulary), k=numbers.randrange(most))

    generated = tokens(40)
    parameters = {
        "temperature": some(0.0, 0.05, 0.7, 1.0, 2.0),
        "top_k": some(0, 0, 1, 2, 5, 50, 2 * vocabulary),
        "top_p": some(1.0, 1.0, 0.1, 0.5, 0.9, 0.999),
        "min_p": some(0.0, 0.0, 0.05, 1.0),
        "presence_penalty": some(0.0, 0.0, 0.7, -1.0),
        "frequency_penalty": some(0.0, 0.0, 0.3, -0.2),
        "repetition_penalty": some(1.0, 1.0, 1.3, 0.6),
        "logit_bias": {token: numbers.uniform(-100, 100) for token in tokens(some(1, 1, 6))},
    }
    allowed = Bits({numbers.randrange(vocabulary), *tokens(30)}) if some(0, 0, 0, 1) else None
    return Draw(
        sampling=SamplingParams(**(parameters | fixed)),
        seed=numbers.getrandbits(64),
        step=len(generated),
        prompt=tokens(60),
        tokens=generated,
        logprobs=some(None, None, 0, 1, 5, 20),
        matcher=allowed,
    )


def twice(draws):
    """The same draws without what was kept of them."""
    return [
        Draw(
            sampling=draw.sampling,
            seed=draw.seed,
            step=draw.step,
            prompt=draw.prompt,
            tokens=list(draw.tokens),
            logprobs=draw.logprobs,
            matcher=draw.matcher,
        )
        for draw in draws
    ]


def scores_of(logits, draw):
    """What is drawn from: float64, after biases, penalties, mask and temperature."""
    scores, chosen = logits.double(), draw.sampling
    for token, bias in chosen.logit_bias.items():
        scores[token] += bias
    for token in {*draw.prompt, *draw.tokens}:
        score, factor = scores[token], chosen.repetition_penalty
        scores[token] = score / factor if score > 0 else score * factor
    for token in set(draw.tokens):
        count = draw.tokens.count(token)
        scores[token] -= count * chosen.frequency_penalty + chosen.presence_penalty
    if draw.matcher is not None:
        allowed = torch.zeros(len(scores), dtype=torch.bool)
        allowed[list(draw.matcher.tokens)] = True
        scores[~allowed] = -torch.inf
    return scores if chosen.greedy else scores / chosen.temperature


def kept_of(weights, parameters, slack):
    """Which weights (vocabulary,) float64 are kept, top_p being larger by `slack`."""
    ordered, _ = weights.sort(descending=True)
    if 0 < parameters.top_k < len(weights):
        ordered = ordered[: parameters.top_k]
    if parameters.top_p < 1:
        before = ordered.cumsum(0) - ordered
        inside = before < (parameters.top_p + slack) * ordered.sum()
        ordered = ordered[: max(1, int(inside.sum()))]
    least = torch.maximum(ordered[-1], torch.tensor(parameters.min_p, dtype=torch.float64))
    # As likely as the last one, in the precision that is computed in.
    return weights >= least * (1 - CLOSE if slack > 0 else 1 + CLOSE)


def describes(draw, logits, token):
    """Whether the parameters say that this token is chosen."""
    scores = scores_of(logits, draw)
    if draw.sampling.greedy or scores.max() == -torch.inf:
        return bool(scores[token] >= scores.max() - CLOSE * (1 + scores.max().abs()))
    weights = (scores - scores.max()).exp()
    seed = draw.seed - (1 << 64) if draw.seed >> 63 else draw.seed
    share = uniform(torch.tensor([seed]), torch.tensor([draw.step])).item()
    for slack in (CLOSE, -CLOSE):
        kept = weights * kept_of(weights, draw.sampling, slack)
        kept = weights * (weights == 1) if kept.sum() == 0 else kept
        edges = kept.cumsum(0) / kept.sum()
        below = edges[token - 1].item() if token else 0.0
        if kept[token] > 0 and below - 10 * CLOSE <= share <= edges[token].item() + 10 * CLOSE:
            return True
    return False


@pytest.mark.parametrize("kind", ["usual", "ties", "flat", "impossible"])
@pytest.mark.parametrize("vocabulary", SIZES)
def test_choices_are_those_of_torch(vocabulary, kind):
    numbers = random.Random(f"{vocabulary} {kind}")
    total = same = 0
    for _ in range(4 if vocabulary > 2000 else 60):
        logits = logits_of(numbers, numbers.randrange(1, 9), vocabulary, kind)
        draws = [draw_of(numbers, vocabulary) for _ in logits]
        mine, theirs = choose(logits, draws), sampling.choose(logits, twice(draws))
        for row, draw in enumerate(draws):
            total += 1
            same += mine[row].token == theirs[row].token
            assert describes(draw, logits[row], mine[row].token), draw
            check_logprobs(draw, logits[row], mine[row])
    # They may differ where a number falls on an edge between two tokens.
    assert total - same <= total // 100 + 1


def check_logprobs(draw, logits, choice):
    if draw.logprobs is None:
        assert choice.logprob is None
        assert choice.top == ()
        return
    expected = logits.double().log_softmax(-1)
    assert choice.logprob == pytest.approx(expected[choice.token].item(), rel=1e-5, abs=1e-5)
    values, _ = expected.topk(min(draw.logprobs, len(logits)))
    assert [value for _, value in choice.top] == pytest.approx(values.tolist(), rel=1e-5, abs=1e-5)
    for token, value in choice.top:
        assert value == pytest.approx(expected[token].item(), rel=1e-5, abs=1e-5)
    assert len({token for token, _ in choice.top}) == len(choice.top)


@pytest.mark.parametrize("vocabulary", [5, 8, 24, 1000])
def test_rows_that_are_not_finite_are_found_wherever_the_number_is(vocabulary):
    for number in (torch.nan, torch.inf):
        for place in {0, 1, vocabulary // 2, vocabulary - 1}:
            logits = torch.randn((4, vocabulary))
            logits[1, place] = number
            logits[2] = -torch.inf
            for draws in (
                [draw_of(random.Random(1), vocabulary) for _ in range(4)],
                [Draw(sampling=SamplingParams(temperature=0), seed=0) for _ in range(4)],
            ):
                choices = choose(logits, draws)
                assert [choice is None for choice in choices] == [False, True, True, False]


def test_the_first_of_equally_likely_tokens_is_the_likeliest():
    for vocabulary in (9, 64, 1001):
        for places in ([0, 8], [3, 4], [7, vocabulary - 1], [vocabulary - 1]):
            logits = torch.zeros((1, vocabulary))
            logits[0, places] = 2.0
            greedy = Draw(sampling=SamplingParams(temperature=0), seed=0, logprobs=len(places))
            assert choose(logits, [greedy])[0].token == places[0]
            told = choose(logits, [greedy])[0].top
            assert [token for token, _ in told] == places
            plain = Draw(sampling=SamplingParams(temperature=0), seed=0)
            assert choose(logits, [plain])[0].token == places[0]


def test_a_grammar_that_lets_nothing_through_is_left_to_its_matcher():
    draw = Draw(sampling=SamplingParams(), seed=3, matcher=Bits(set()))
    assert choose(torch.randn(1, 50), [draw])[0].token == 0


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_that_share_rows_choose_the_same(threads):
    runner = CpuRunner(from_torch(build()), rows=16, max_length=64, threads=threads)
    numbers = random.Random(11)
    logits = logits_of(numbers, 16, VOCABULARY, "usual")
    draws = [draw_of(numbers, VOCABULARY) for _ in range(16)]
    assert runner._sampler.choose(array_of(logits), twice(draws)) == choose(logits, draws)


def test_logits_and_draws_must_go_together():
    draw = Draw(sampling=SamplingParams(), seed=0)
    for logits in (torch.zeros(2, 5), torch.zeros(1, 6)):
        sampler = NativeSampler(native.library(), vocabulary=5)
        with pytest.raises(ValueError, match="shape"):
            sampler.choose(array_of(logits), [draw])
