"""The native library on the real SmolLM2, by each set of instructions, beside transformers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_inference.engine import models, native
from llm_inference.engine.directory import inspect
from llm_inference.engine.native import NativeDecoder
from llm_inference.engine.torch_decoder import tensor_of

TEXTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived an old fisherman who had never " * 12,
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
)
LENGTH, STEPS = 512, 24

if native.instructions() is None:
    pytest.skip("the library needs AVX2", allow_module_level=True)


@pytest.fixture(params=["avx2", "avx512"])
def instructions(request, monkeypatch):
    """The set of instructions that decoders run with."""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", request.param)
    if native.instructions() != request.param:
        pytest.skip(f"this processor has no {request.param}")
    return request.param


@pytest.fixture(scope="module")
def prompts(smollm2_dir):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    return [tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.fixture(scope="module")
def exact(smollm2_dir):
    """transformers' model in float32, of the weights as they are kept: bfloat16."""
    return AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()


class Opened(NativeDecoder):
    """Gives logits as tensors."""

    def step(self, spans, tokens, *, logits=True):
        return tensor_of(super().step(spans, tokens, logits=logits))


def open_decoder(directory, dtype, rows):
    decoder = native.converted(models.load_decoder(inspect(directory), dtype=dtype), dtype)
    return Opened(decoder, rows=rows, max_length=LENGTH, most_tokens=LENGTH, threads=2)


@torch.inference_mode()
def logits_of(model, tokens):
    return model(input_ids=torch.tensor([tokens])).logits[0].float()


def error(actual, wanted):
    return float((actual.float() - wanted).norm() / wanted.norm())


def test_bfloat16_is_as_near_to_float32_as_transformers_own(
    smollm2_dir, exact, prompts, instructions
):
    short = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.bfloat16).eval()
    opened = open_decoder(smollm2_dir, "bfloat16", 1)
    for tokens in prompts:
        wanted = logits_of(exact, tokens)
        bound = 1.6 * error(logits_of(short, tokens), wanted)
        half = len(tokens) // 2
        actual = [opened.step([(0, 0, half)], tokens[:half])[0].clone()]
        actual += [
            opened.step([(0, at, 1)], [tokens[at]])[0].clone() for at in range(half, len(tokens))
        ]
        assert error(torch.stack(actual), wanted[half - 1 :]) < bound


def test_greedy_equals_generate_in_float32(smollm2_dir, exact, prompts, instructions):
    opened = open_decoder(smollm2_dir, "float32", len(prompts))
    chosen = []
    for row, tokens in enumerate(prompts):
        chosen.append([int(opened.step([(row, 0, len(tokens))], tokens)[0].argmax())])
    for step in range(STEPS - 1):
        spans = [(row, len(tokens) + step, 1) for row, tokens in enumerate(prompts)]
        logits = opened.step(spans, [tokens[-1] for tokens in chosen])
        for tokens, choice in zip(chosen, logits.argmax(dim=-1).tolist(), strict=True):
            tokens.append(choice)
    for tokens, got in zip(prompts, chosen, strict=True):
        wanted = exact.generate(
            torch.tensor([tokens]), max_new_tokens=STEPS, do_sample=False, eos_token_id=None
        )
        assert got == wanted[0, len(tokens) :].tolist()
