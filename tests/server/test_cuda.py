"""The CUDA runner computes what transformers computes; runs where there is a CUDA device."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from llm_inference.engine.cuda_runner import CudaRunner, supported
from llm_inference.engine.families import read_decoder
from llm_inference.engine.interface import SamplingParams
from llm_inference.engine.step import Draw
from llm_inference.engine.torch_decoder import array_of, to_torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DEVICE = "cuda"
VOCABULARY = 384
LENGTH = 2304
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
WINDOW = {"sliding_window": 96}
FAMILIES = {
    "llama": ("llama", {}),
    "llama of one head each": ("llama", {"num_key_value_heads": 8}),
    "llama of three": ("llama", {"num_attention_heads": 6, "hidden_size": 192}),
    "llama of sixteen": ("llama", {"num_attention_heads": 16, "num_key_value_heads": 1}),
    "llama wide": ("llama", {"head_dim": 128, "attention_bias": True}),
    "mistral": ("mistral", WINDOW),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "phi3": ("phi3", {"head_dim": 96, "num_attention_heads": 4, "hidden_size": 384}),
    "gemma2": ("gemma2", WINDOW | {"head_dim": 256, "query_pre_attn_scalar": 256}),
    "gemma3": ("gemma3_text", WINDOW | {"head_dim": 256, "query_pre_attn_scalar": 256}),
}
GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(temperature=0.8, top_k=20)


@pytest.fixture(scope="module", autouse=True)
def _exact():
    """Products of float32 are float32's, not of a shorter type."""
    torch.backends.cuda.matmul.allow_tf32 = False


def build(family, dtype, **more):
    kind, changes = FAMILIES[family]
    config = AutoConfig.for_model(kind, **(SHAPE | changes | more))
    torch.manual_seed(3)
    model = (
        AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        .eval()
        .to(DEVICE)
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        saved = load_file(Path(folder) / "model.safetensors")
    weights = {name: tensor.to(dtype) for name, tensor in saved.items()}
    if dtype is not torch.float32:
        # The reference has the same rounded weights.
        rounded = {name: tensor.float() for name, tensor in weights.items()}
        model.load_state_dict(rounded, strict=False)
    found = read_decoder(config, {name: array_of(tensor) for name, tensor in weights.items()})
    assert found is not None
    decoder = to_torch(found, device=DEVICE)
    assert supported(decoder)
    return model, decoder


def shorten(model, dtype):
    """The model in a short type, but for its rotary frequencies, as transformers loads it."""
    buffers = dict(model.named_buffers())
    model.to(dtype)
    for name, buffer in buffers.items():
        place, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(place), leaf, buffer)
    return model


def prompt(length, seed=0):
    generator = torch.Generator().manual_seed(seed * 10_007 + length)
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()


def draws(count, sampling=GREEDY, **more):
    return [Draw(sampling=sampling, seed=5, **more) for _ in range(count)]


@torch.inference_mode()
def expected(model, tokens):
    return model(input_ids=torch.tensor([tokens], device=DEVICE)).logits[0].float()


def generate(model, tokens, count):
    output = model.generate(
        torch.tensor([tokens], device=DEVICE), max_new_tokens=count, do_sample=False
    )
    return output[0, len(tokens) :].tolist()


def error(actual, wanted):
    return float((actual.float() - wanted).norm() / wanted.norm())


def start(runner, prompts):
    tokens = []
    for row, text in enumerate(prompts):
        tokens.append(runner.prefill(row, text, 0, draws(1)[0]).token)
    return tokens


def go_on(runner, prompts, tokens, steps):
    """Decode all rows greedily; the tokens of each, the first among them."""
    texts = [[token] for token in tokens]
    for step in range(steps):
        positions = [len(text) + step for text in prompts]
        choices = runner.decode(0, [text[-1] for text in texts], positions, draws(len(texts)))
        for text, choice in zip(texts, choices, strict=True):
            text.append(choice.token)
    return texts


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate_in_float32_alone_and_mixed(family):
    model, decoder = build(family, torch.float32)
    runner = CudaRunner(decoder, rows=6, max_length=LENGTH)
    prompts = [prompt(length) for length in (7, 150, 1, 64, 33)]
    wanted = [generate(model, text, 24) for text in prompts]
    for text, tokens in zip(prompts, wanted, strict=True):
        assert go_on(runner, [text], start(runner, [text]), 23)[0] == tokens
    assert go_on(runner, prompts, start(runner, prompts), 23) == wanted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_in_short_types_are_as_near_to_float32_as_transformers_own(family, dtype):
    model, decoder = build(family, dtype)
    runner = CudaRunner(decoder, rows=5, max_length=LENGTH)
    texts = [prompt(length) for length in (2100, 17, 300)]
    wanted = [expected(model, text) for text in texts]
    model = shorten(model, dtype)
    bounds = [
        1.6 * error(expected(model, text), all_) for text, all_ in zip(texts, wanted, strict=True)
    ]

    def check(row, logits, at):
        assert error(logits, wanted[row][at]) < bounds[row]

    def decode(first, tokens, positions):
        # What asks for log probabilities is not followed by a step that is guessed.
        list(runner.decode(first, tokens, positions, draws(len(tokens), logprobs=0)))
        return runner._step.logits

    for row, text in enumerate(texts):
        ids = torch.tensor(text[:-4], dtype=torch.int32, device=DEVICE)
        with torch.inference_mode():
            logits = runner._forward.prefill(row, ids, 0)
        check(row, logits[0], len(text) - 5)
        # Alone, without a graph and with one.
        for at in (len(text) - 4, len(text) - 3):
            check(row, decode(row, [text[at]], [at])[0], at)
    for back in (2, 1):
        at = [len(text) - back for text in texts]
        logits = decode(0, [text[-back] for text in texts], at)
        for row in range(3):
            check(row, logits[row], at[row])


def test_a_prompt_in_pieces_gives_the_same_tokens():
    for family in ("llama", "mistral", "gemma2"):
        model, decoder = build(family, torch.float32)
        runner = CudaRunner(decoder, rows=3, max_length=LENGTH)
        text = prompt(400)
        assert runner.prefill(1, text[:300], 0, None) is None
        assert runner.prefill(1, text[300:301], 300, None) is None
        token = runner.prefill(1, text[301:], 301, draws(1)[0]).token
        runner.move(1, 0, len(text))
        assert go_on(runner, [text], [token], 7)[0] == generate(model, text, 8)


def test_pieces_of_a_prompt_in_a_short_type():
    for family in ("llama", "mistral"):
        model, decoder = build(family, torch.bfloat16)
        runner = CudaRunner(decoder, rows=1, max_length=LENGTH)
        text = prompt(400)
        wanted = expected(model, text)
        bound = 1.6 * error(expected(shorten(model, torch.bfloat16), text), wanted)
        with torch.inference_mode():
            for first, end in ((0, 256), (256, 257), (257, 400)):
                ids = torch.tensor(text[first:end], dtype=torch.int32, device=DEVICE)
                logits = runner._forward.prefill(0, ids, first)
                assert error(logits[0], wanted[end - 1]) < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_poisoned_row_ends_alone_and_leaves_nothing(dtype):
    _, decoder = build("llama", dtype)
    runner = CudaRunner(decoder, rows=4, max_length=LENGTH)
    prompts = [prompt(length) for length in (20, 40, 30)]
    wanted = go_on(runner, prompts, start(runner, prompts), 4)
    tokens = start(runner, prompts)
    with torch.inference_mode():
        runner._cache[:, :, 1] = torch.nan
    choices = list(runner.decode(0, tokens, [20, 40, 30], draws(3)))
    assert choices[1] is None
    assert [choices[0].token, choices[2].token] == [wanted[0][1], wanted[2][1]]
    sampled = runner.decode(0, tokens, [20, 40, 30], draws(3, SAMPLED))
    assert sampled[1] is None
    assert None not in (sampled[0], sampled[2])
    runner.clear(1)
    assert go_on(runner, prompts, start(runner, prompts), 4) == wanted


def test_rows_that_only_fill_a_batch_up_are_left_alone():
    _, decoder = build("llama", torch.float32)
    runner = CudaRunner(decoder, rows=4, max_length=LENGTH)
    start(runner, [prompt(9, seed) for seed in range(4)])
    before = runner._cache[:, :, 3, :, :9].clone()
    go_on(runner, [prompt(9, seed) for seed in range(3)], [5, 6, 7], 3)
    assert torch.equal(runner._cache[:, :, 3, :, :9], before)


def test_a_batch_may_begin_at_any_row():
    _, decoder = build("llama", torch.float32)
    runner = CudaRunner(decoder, rows=4, max_length=LENGTH)
    prompts = [prompt(length) for length in (20, 40, 30)]
    tokens = start(runner, prompts)
    together = list(runner.decode(0, tokens, [20, 40, 30], draws(3)))
    tail = list(runner.decode(1, tokens[1:], [40, 30], draws(2)))
    assert tail == together[1:]


def test_choices_are_read_late_and_belong_to_their_step():
    _, decoder = build("llama", torch.float32)
    runner = CudaRunner(decoder, rows=2, max_length=LENGTH)
    text = prompt(20)
    first = start(runner, [text])[0]
    wanted = go_on(runner, [text], [first], 2)[0]
    pending = runner.decode(0, [first], [20], draws(1))
    runner.decode(0, [wanted[1]], [21], draws(1))
    assert pending[0].token == wanted[1]


def test_batches_that_change_get_no_choices_of_a_batch_that_was_guessed():
    model, decoder = build("llama", torch.float32)
    runner = CudaRunner(decoder, rows=3, max_length=LENGTH)
    first, second, third = (prompt(length, 7) for length in (12, 12, 20))
    texts = go_on(runner, [first, second], start(runner, [first, second]), 5)
    wanted = generate(model, second, 12)
    assert texts[1] == wanted[:6]
    # The first leaves, the second takes its row, a third comes.
    runner.move(1, 0, 12 + 5)
    texts = [texts[1], [runner.prefill(1, third, 0, draws(1)[0]).token]]
    for step in range(6):
        tokens = [text[-1] for text in texts]
        choices = runner.decode(0, tokens, [17 + step, 20 + step], draws(2))
        for text, choice in zip(texts, choices, strict=True):
            text.append(choice.token)
    assert texts == [wanted, generate(model, third, 7)]


def test_log_probabilities_come_with_the_choice():
    model, decoder = build("llama", torch.float32)
    runner = CudaRunner(decoder, rows=2, max_length=LENGTH)
    text = prompt(20)
    choice = runner.prefill(0, text, 0, draws(1, logprobs=2)[0])
    wanted = expected(model, text)[-1].log_softmax(-1)
    assert choice.logprob == pytest.approx(float(wanted[choice.token]), abs=1e-4)
    again = runner.decode(0, [choice.token], [20], draws(1, logprobs=2))[0]
    assert len(again.top) == 2
