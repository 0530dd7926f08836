"""The native library computes what the plain arithmetic does, whatever a decoder is made of.

The decoders are small and random. Where the library cannot run, nothing is left to test; what it
has for each set of instructions is tested where the processor has that set.
"""

import math
import random
from dataclasses import replace

import pytest
import torch

from llm_inference.engine import native, reference
from llm_inference.engine.arrays import stack
from llm_inference.engine.cpu_runner import CpuRunner
from llm_inference.engine.interface import SamplingParams
from llm_inference.engine.native import NativeDecoder
from llm_inference.engine.step import Draw
from llm_inference.engine.torch_decoder import (
    Decoder,
    Layer,
    Rope,
    array_of,
    from_torch,
    tensor_of,
    to_torch,
)

SETS = ("avx2", "avx512")

if native.library() is None:
    pytest.skip("the library needs AVX2", allow_module_level=True)

VOCABULARY, HIDDEN, INTERMEDIATE, HEAD_DIM = 101, 64, 80, 32
LENGTH = 300  # more than one block of attention
PLAIN = {"heads": 4, "kv_heads": 2}
DECODERS = {
    "plain": {},
    "as many keys as queries": {"heads": 3, "kv_heads": 3},
    "one key head": {"heads": 7, "kv_heads": 1},
    "no positions": {"rope": None},
    "partial, scaled positions": {"pairs": 4, "rope_scale": 1.3},
    "window": {"window": 20},
    "every other layer has a window": {"window": 40, "alternating": True},
    "a window of one": {"window": 1},
    "biases": {"biases": True},
    "norms of heads": {"head_norms": True},
    "norms after": {"post_norms": True},
    "gelu": {"activation": "gelu"},
    "gelu by tanh": {"activation": "gelu_tanh"},
    "softcaps": {"attention_softcap": 2.0, "logit_softcap": 3.0},
    "scales": {
        "embedding_scale": 7.7,
        "residual_scale": 0.3,
        "logit_scale": 0.25,
        "attention_scale": 0.4,
    },
    "a head of its own": {"tied": False},
    "everything": {
        "heads": 6,
        "kv_heads": 2,
        "pairs": 8,
        "rope_scale": 0.9,
        "window": 33,
        "alternating": True,
        "biases": True,
        "head_norms": True,
        "post_norms": True,
        "activation": "gelu_tanh",
        "attention_softcap": 5.0,
        "logit_softcap": 4.0,
        "embedding_scale": 8.0,
        "residual_scale": 0.7,
        "tied": False,
    },
}


@pytest.fixture(autouse=True, params=SETS)
def instructions(request, monkeypatch):
    """The set of instructions that decoders run with."""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", request.param)
    if native.instructions() != request.param:
        pytest.skip(f"this processor has no {request.param}")
    return request.param


def build(
    *,
    heads=4,
    kv_heads=2,
    pairs=HEAD_DIM // 2,
    rope_scale=1.0,
    window=None,
    alternating=False,
    biases=False,
    head_norms=False,
    post_norms=False,
    tied=True,
    dtype=torch.float32,
    layers=3,
    hidden=HIDDEN,
    attention_scale=HEAD_DIM**-0.5,
    **more,
):
    generator = torch.Generator().manual_seed(5)

    def matrix(out, size, gain=1.0):
        values = torch.randn((out, size), generator=generator) * gain / math.sqrt(size)
        return values.to(dtype)

    def norm(size, wanted=True):
        return 1 + 0.3 * torch.randn(size, generator=generator) if wanted else None

    def bias(size):
        return (torch.randn(size, generator=generator) * 0.5).to(dtype) if biases else None

    frequencies = 0.5 ** torch.arange(pairs, dtype=torch.float32)
    rope = more.pop("rope", Rope(frequencies=frequencies, scale=rope_scale))

    def layer(number):
        wide = (heads + 2 * kv_heads) * HEAD_DIM
        return Layer(
            attention_norm=norm(hidden),
            qkv=matrix(wide, hidden, 2.0),
            qkv_bias=bias(wide),
            query_norm=norm(HEAD_DIM, head_norms),
            key_norm=norm(HEAD_DIM, head_norms),
            output=matrix(hidden, heads * HEAD_DIM),
            output_bias=bias(hidden),
            attention_post_norm=norm(hidden, post_norms),
            mlp_norm=norm(hidden),
            gate_up=matrix(2 * INTERMEDIATE, hidden, 2.0),
            down=matrix(hidden, INTERMEDIATE),
            mlp_post_norm=norm(hidden, post_norms),
            window=None if alternating and number % 2 else window,
            rope=rope,
        )

    embedding = matrix(VOCABULARY, hidden, math.sqrt(hidden))
    return Decoder(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=HEAD_DIM,
        embedding=embedding,
        layers=tuple(layer(number) for number in range(layers)),
        norm=norm(hidden),
        head=embedding if tied else matrix(VOCABULARY, hidden, 3.0),
        norm_eps=1e-5,
        attention_scale=attention_scale,
        **more,
    )


def tokens_of(seed, length=LENGTH):
    return random.Random(seed).choices(range(VOCABULARY), k=length)


class Opened(NativeDecoder):
    """Gives logits as tensors."""

    def step(self, spans, tokens, *, logits=True):
        return tensor_of(super().step(spans, tokens, logits=logits))


def open_decoder(decoder, rows=4, length=LENGTH, threads=2):
    return Opened(
        from_torch(decoder) if isinstance(decoder, Decoder) else decoder,
        rows=rows,
        max_length=length,
        most_tokens=max(rows, length),
        threads=threads,
    )


def supported(decoder):
    return CpuRunner.supported(from_torch(decoder))


def one_by_one(opened, tokens, row=0, start=0):
    """Logits after each token, decoded alone."""
    return torch.cat(
        [opened.step([(row, start + at, 1)], [token]).clone() for at, token in enumerate(tokens)]
    )


@pytest.mark.parametrize("what", DECODERS)
def test_logits_are_those_of_the_plain_arithmetic(what):
    decoder = build(**DECODERS[what])
    tokens = tokens_of(1)
    expected = reference.logits(decoder, torch.tensor(tokens))
    actual = one_by_one(open_decoder(decoder), tokens)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("what", ["plain", "everything"])
def test_bfloat16_weights_give_nearly_what_float32_does(what):
    decoder = build(**DECODERS[what], dtype=torch.bfloat16)
    # The same numbers in float32; rounded are the cache and, on AVX-512, what is multiplied.
    layers = tuple(
        replace(
            layer,
            **{
                name: value.float()
                for name, value in vars(layer).items()
                if isinstance(value, torch.Tensor)
            },
        )
        for layer in decoder.layers
    )
    wide = replace(
        decoder, layers=layers, embedding=decoder.embedding.float(), head=decoder.head.float()
    )
    tokens = tokens_of(2, 100)
    expected = reference.logits(wide, torch.tensor(tokens))
    actual = one_by_one(open_decoder(decoder), tokens)
    close = torch.nn.functional.cosine_similarity(actual, expected, dim=-1)
    assert close.mean() > 0.999


def in_pieces(matrix, *rows):
    """A copy of a matrix, its rows apart from each other."""
    return stack([array_of(part.clone()) for part in tensor_of(matrix).split(rows)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("what", ["plain", "as many keys as queries", "everything"])
def test_matrices_in_pieces_are_as_good_as_whole_ones(what, dtype):
    decoder = build(**DECODERS[what], dtype=dtype)
    queries, keys = decoder.heads * HEAD_DIM, decoder.kv_heads * HEAD_DIM
    whole = from_torch(decoder)
    apart = replace(
        whole,
        layers=tuple(
            replace(
                layer,
                qkv=in_pieces(layer.qkv, queries, keys, keys),
                gate_up=in_pieces(layer.gate_up, INTERMEDIATE, INTERMEDIATE),
            )
            for layer in whole.layers
        ),
    )
    tokens = tokens_of(10, 70)
    expected = one_by_one(open_decoder(whole), tokens)
    assert torch.equal(one_by_one(open_decoder(apart), tokens), expected)
    assert torch.equal(open_decoder(apart).step([(0, 0, 70)], tokens)[0], expected[-1])


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_matrices_are_converted_as_torch_converts_them(dtype, wanted):
    decoder = build(dtype=dtype, layers=1, biases=True)
    decoder.embedding[0, :4] = torch.tensor([math.inf, math.nan, 1e-7, 1.00390625])
    there = to_torch(native.converted(from_torch(decoder), wanted))
    assert there.head is there.embedding
    torch_type = getattr(torch, wanted)
    for mine, theirs in (
        (there.embedding, decoder.embedding),
        (there.layers[0].qkv, decoder.layers[0].qkv),
        (there.layers[0].qkv_bias, decoder.layers[0].qkv_bias),
        (there.layers[0].down, decoder.layers[0].down),
    ):
        assert mine.dtype is torch_type
        torch.testing.assert_close(mine, theirs.to(torch_type), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(there.layers[0].mlp_norm, decoder.layers[0].mlp_norm)
    assert there.layers[0].mlp_norm.dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("what", ["plain", "one key head", "everything"])
def test_logits_do_not_depend_on_how_a_prompt_is_divided(what, dtype):
    decoder = build(**DECODERS[what], dtype=dtype)
    tokens = tokens_of(3)
    expected = one_by_one(open_decoder(decoder), tokens)
    for pieces in ([300], [1, 299], [128, 128, 44], [17, 1, 15, 200, 67]):
        opened, start = open_decoder(decoder), 0
        for piece in pieces:
            actual = opened.step([(2, start, piece)], tokens[start : start + piece])
            start += piece
            assert torch.equal(actual[0], expected[start - 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_logits_do_not_depend_on_the_rest_of_the_batch(dtype, threads):
    decoder = build(**DECODERS["everything"], dtype=dtype)
    rows = 19
    prompts = [tokens_of(row, 5 + 13 * row) for row in range(rows)]
    alone = open_decoder(decoder, threads=threads)
    expected = [one_by_one(alone, prompt)[-1] for prompt in prompts]
    opened = open_decoder(decoder, rows=rows, threads=threads)
    for count in range(1, rows + 1):
        chosen = random.Random(count).sample(range(rows), count)
        for row in chosen:
            opened.step([(row, 0, len(prompts[row]) - 1)], prompts[row][:-1], logits=False)
        spans = [(row, len(prompts[row]) - 1, 1) for row in chosen]
        actual = opened.step(spans, [prompts[row][-1] for row in chosen])
        for row, logits in zip(chosen, actual, strict=True):
            assert torch.equal(logits, expected[row]), (count, row)


def test_prompts_and_single_tokens_go_through_one_pass():
    decoder = build(**DECODERS["everything"])
    first, second = tokens_of(4, 90), tokens_of(5, 140)
    alone = open_decoder(decoder)
    expected = [one_by_one(alone, tokens)[-1] for tokens in (first, second)]
    opened = open_decoder(decoder)
    opened.step([(3, 0, 89)], first[:-1], logits=False)
    actual = opened.step([(3, 89, 1), (0, 0, 140)], [first[-1], *second])
    assert torch.equal(actual, torch.stack(expected))


def test_a_copied_row_goes_on_like_the_first_one():
    decoder = build(window=20, alternating=True)
    tokens = tokens_of(6, 120)
    opened = open_decoder(decoder)
    expected = one_by_one(opened, tokens)
    opened.copy(0, 3, 77)
    assert torch.equal(one_by_one(opened, tokens[77:], row=3, start=77), expected[77:])
    assert torch.equal(one_by_one(opened, tokens[77:], row=0, start=77), expected[77:])


def test_numbers_that_are_not_finite_stay_in_their_row():
    decoder = build()
    poisoned = decoder.embedding.clone()
    poisoned[7] = math.nan
    decoder = replace(decoder, embedding=poisoned, head=decoder.embedding)
    healthy = [token for token in tokens_of(8, 60) if token != 7]
    expected = one_by_one(open_decoder(decoder), healthy)
    opened = open_decoder(decoder)
    for at, token in enumerate(healthy):
        actual = opened.step([(0, at, 1), (1, at, 1)], [7, token])
        assert torch.isnan(actual[0]).all()
        assert torch.equal(actual[1], expected[at])
    # Whoever has the row next does not notice.
    actual = opened.step([(0, 0, len(healthy))], healthy)
    assert torch.equal(actual[0], expected[-1])


def test_what_is_out_of_bounds_is_refused_and_harms_nothing():
    opened = open_decoder(build(), rows=2, length=32)
    for spans, tokens in (
        ([(2, 0, 1)], [1]),
        ([(-1, 0, 1)], [1]),
        ([(0, 32, 1)], [1]),
        ([(0, -1, 1)], [1]),
        ([(0, 30, 3)], [1, 1, 1]),
        ([(0, 0, 0)], []),
        ([(0, 0, 1)], [VOCABULARY]),
        ([(0, 0, 1)], [-1]),
        ([(0, 0, 2)], [1]),
        ([], []),
    ):
        with pytest.raises(ValueError, match="spans"):
            opened.step(spans, tokens)
    for source, target, length in ((2, 0, 1), (0, -1, 1), (0, 1, 33), (0, 1, -1)):
        with pytest.raises(ValueError, match="positions"):
            opened.copy(source, target, length)
    assert torch.isfinite(opened.step([(0, 31, 1)], [1])).all()


def test_what_the_library_cannot_run_is_left_to_transformers():
    assert supported(build())
    assert supported(build(dtype=torch.bfloat16))
    assert not supported(build(dtype=torch.float16))
    assert not supported(build(hidden=72))


def test_without_the_library_transformers_runs_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "missing.so")
    native.library.cache_clear()
    try:
        assert not supported(build())
    finally:
        monkeypatch.undo()
        native.library.cache_clear()
    assert supported(build())


def test_the_best_set_is_chosen_unless_the_environment_says_otherwise(monkeypatch):
    with open("/proc/cpuinfo", encoding="ascii") as cpuinfo:  # noqa: PTH123
        flags = next(line.split() for line in cpuinfo if line.startswith("flags"))
    best = "avx512" if {"avx512vl", "avx512_bf16"} <= set(flags) else "avx2"
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")
    assert native.instructions() == best
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert native.instructions() == "avx2"
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert native.instructions() is None
    with pytest.raises(MemoryError):
        open_decoder(build())


def test_a_decoder_keeps_its_set(monkeypatch):
    decoder, tokens = build(dtype=torch.bfloat16), tokens_of(10, 40)
    expected = one_by_one(open_decoder(decoder), tokens)
    opened = open_decoder(decoder)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    other = open_decoder(decoder)
    assert torch.equal(one_by_one(opened, tokens), expected)
    close = torch.nn.functional.cosine_similarity(one_by_one(other, tokens), expected, dim=-1)
    assert close.mean() > 0.999


def test_the_cache_is_as_large_as_it_says():
    decoder = build(dtype=torch.bfloat16)
    opened = open_decoder(decoder, rows=3, length=160)
    assert opened._cache.shape == (3 * 160 * CpuRunner.bytes_per_token(from_torch(decoder)),)


def test_the_runner_chooses_what_the_logits_say():
    decoder = build()
    runner = CpuRunner(from_torch(decoder), rows=3, max_length=LENGTH)
    prompt = tokens_of(9, 40)

    def greedy():
        return Draw(sampling=SamplingParams(temperature=0), seed=0)

    expected = list(prompt)
    for _ in range(5):
        after = reference.logits(decoder, torch.tensor(expected))[-1]
        expected.append(int(after.argmax()))
    assert runner.prefill(1, prompt[:30], 0, None) is None
    tokens = [runner.prefill(1, prompt[30:], 30, greedy()).token]
    runner.move(1, 0, 40)
    for at in range(40, 44):
        first, second = runner.decode(0, [tokens[-1]] * 2, [at, at], [greedy(), greedy()])
        assert first == second
        tokens.append(first.token)
    assert tokens == expected[40:]


def test_threads_end_with_the_decoder():
    def threads():
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
            return next(int(line.split()[1]) for line in status if line.startswith("Threads:"))

    before = threads()
    opened = open_decoder(build(), threads=4)
    assert threads() == before + 3
    opened.close()
    assert threads() == before
