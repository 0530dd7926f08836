"""Greedy decoding through the row cache equals `generate()`, for several families of models.

The models are small and random, which makes their next tokens depend on everything before.
"""

import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llm_inference.engine import pretrained
from llm_inference.engine.cache import RowCache
from llm_inference.engine.directory import ModelDirectory, ModelLoadError
from llm_inference.engine.interface import SamplingParams
from llm_inference.engine.runner import CausalRunner
from llm_inference.engine.step import Draw

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    # Tied, a random model repeats its last token whatever came before.
    "tie_word_embeddings": False,
}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 16},
    "phi3": {},
    "gemma2": {"sliding_window": 16},
    "gemma3_text": {"sliding_window": 16},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256},
}


def build(family):
    torch.manual_seed(3)
    shape = {"vocab_size": 97} if family == "gpt2" else SHAPE
    config = AutoConfig.for_model(family, **{**shape, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def runner_for(model, rows=4, max_length=256, chunk=None):
    directory = ModelDirectory(path=None, model_id="test", revision=None, config={}, generates=True)
    cache = RowCache(
        shapes=pretrained.cache_shapes(model),
        rows=rows,
        max_length=max_length,
        dtype=model.dtype,
        device=model.device,
    )
    return CausalRunner(model=model, cache=cache, windows=pretrained.windows(model, directory))


def reference(model, prompt, tokens):
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
    )
    return output[0, len(prompt) :].tolist()


def greedy(step):
    return Draw(sampling=SamplingParams(temperature=0), seed=0, step=step)


def prefill(runner, row, prompt, chunk):
    for start in range(0, len(prompt), chunk):
        piece = prompt[start : start + chunk]
        last = start + len(piece) == len(prompt)
        choice = runner.prefill(row, piece, start, greedy(0) if last else None)
    return choice.token


def decode(runner, row, tokens, positions, step):
    choices = runner.decode(row, tokens, positions, [greedy(step)] * len(tokens))
    return [choice.token for choice in choices]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_different_lengths_equals_generate_for_each(family):
    model = build(family)
    runner = runner_for(model)
    numbers = random.Random(1)
    prompts = [[numbers.randrange(2, 97) for _ in range(length)] for length in (3, 40, 17)]
    results = [
        [prefill(runner, row, prompt, chunk)]
        for row, (prompt, chunk) in enumerate(zip(prompts, (8, 7, 100), strict=True))
    ]
    for step in range(1, 20):
        positions = [len(prompts[row]) + step - 1 for row in range(3)]
        tokens = decode(runner, 0, [r[-1] for r in results], positions, step)
        for result, token in zip(results, tokens, strict=True):
            result.append(token)
    expected = [reference(model, prompt, 20) for prompt in prompts]
    assert results == expected
    assert all(len(set(tokens)) > 3 for tokens in expected)


def test_rows_move_and_go_on_where_they_were():
    model = build("llama")
    runner = runner_for(model)
    prompt = list(range(5, 25))
    tokens = [prefill(runner, 2, prompt, 8)]
    for step in range(1, 15):
        if step == 5:
            runner.move(2, 0, len(prompt) + step - 1)
            # What another sequence leaves behind in the old row must not matter.
            prefill(runner, 2, list(range(30, 90)), 64)
        row = 2 if step < 5 else 0
        tokens += decode(runner, row, tokens[-1:], [len(prompt) + step - 1], step)
    assert tokens == reference(model, prompt, 15)


def test_a_sequence_fills_its_row_to_the_last_position():
    model = build("llama")
    runner = runner_for(model, max_length=50)
    prompt = list(range(5, 45))
    tokens = [prefill(runner, 1, prompt, 64)]
    for step in range(1, 10):
        tokens += decode(runner, 1, tokens[-1:], [len(prompt) + step - 1], step)
    assert tokens == reference(model, prompt, 10)


def test_stale_rows_are_finite_and_do_not_show():
    model = build("llama")
    runner = runner_for(model)
    short, long = [5, 6, 7], list(range(2, 90))
    prefill(runner, 0, long, 100)
    prefill(runner, 1, long, 100)
    first = [prefill(runner, 0, short, 100), prefill(runner, 1, long, 100)]
    tokens = decode(runner, 0, first, [3, 88], 1)
    expected = [reference(model, short, 2), reference(model, long, 2)]
    assert [list(pair) for pair in zip(first, tokens, strict=True)] == expected


def test_a_model_without_a_standard_cache_is_refused():
    config = AutoConfig.for_model(
        "mamba", vocab_size=50, hidden_size=16, state_size=4, num_hidden_layers=2
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ModelLoadError, match=r"cannot be batched|standard key-value cache"):
        pretrained.cache_shapes(model)


def test_what_is_not_finite_in_a_row_does_not_reach_its_next_user():
    model = build("llama")
    runner = runner_for(model)
    long, short = list(range(2, 90)), [5, 6, 7]
    prefill(runner, 0, long, 100)
    for layer in runner._cache.layers:
        layer.keys[0, :, 40:88], layer.values[0, :, 40:88] = torch.nan, torch.nan
    runner.clear(0)
    first = [prefill(runner, 0, short, 100), prefill(runner, 1, long, 100)]
    tokens = decode(runner, 0, first, [3, 88], 1)
    assert [first[0], tokens[0]] == reference(model, short, 2)
