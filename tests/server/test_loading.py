"""The real model read straight from its files: equal to what transformers reads, and sparing."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_inference.engine import models, reference
from llm_inference.engine.codec import HuggingFaceCodec
from llm_inference.engine.directory import inspect
from llm_inference.engine.tokenizer import DirectTokenizer, read_tokenizer
from llm_inference.engine.torch_decoder import to_torch

TEXTS = [
    "Hello world, hello again!  Two spaces.",
    "Zwölf Boxkämpfer 日本語 🙂 <|im_start|>user\nHi<|im_end|>",
    "1234567 x = y + 3;\n\tindented",
    "",
]


def test_smollm2_is_read_without_transformers_and_alike(smollm2_dir):
    direct, theirs = read_tokenizer(smollm2_dir), AutoTokenizer.from_pretrained(smollm2_dir)
    numbers = random.Random(5)
    texts = [*TEXTS, "".join(chr(numbers.randrange(1, 0x3000)) for _ in range(300))]
    for text in texts:
        assert direct.backend_tokenizer.encode(text).ids == theirs.encode(text)
    assert direct.special_tokens == theirs.special_tokens_map
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for chat in (messages, [{"role": "system", "content": "Be brief."}, *messages]):
        for prompt in (True, False):
            assert direct.apply_chat_template(
                chat, add_generation_prompt=prompt
            ) == theirs.apply_chat_template(chat, add_generation_prompt=prompt, tokenize=False)
    assert isinstance(HuggingFaceCodec.load(smollm2_dir)._tokenizer, DirectTokenizer)


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_the_decoder_computes_what_transformers_computes(smollm2_dir, dtype):
    decoder = models.load_decoder(inspect(smollm2_dir), dtype=dtype)
    decoder = to_torch(decoder, dtype=None if dtype == "auto" else torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=dtype)
    assert decoder.dtype == theirs.dtype
    tokens = torch.tensor(HuggingFaceCodec.load(smollm2_dir).encode(TEXTS[0] + TEXTS[1]))
    with torch.inference_mode():
        expected = theirs(tokens[None]).logits[0].float()
    got = reference.logits(decoder, tokens).float()
    assert (got - expected).norm() < (1e-5 if dtype == "float32" else 0.05) * expected.norm()
    assert torch.equal(got[-1].argmax(), expected[-1].argmax())


def test_all_weights_stay_in_the_mapped_file(smollm2_dir):
    decoder = models.load_decoder(inspect(smollm2_dir), dtype="auto")
    layer = decoder.layers[3]
    mapped = mappings(smollm2_dir / "model.safetensors")
    matrices = (decoder.embedding, layer.qkv, layer.output, layer.gate_up, layer.down)
    assert [len(matrix.pieces) for matrix in matrices] == [1, 3, 1, 2, 1]
    for matrix in matrices:
        for piece in matrix.pieces:
            assert any(begin <= piece.address < end for begin, end in mapped)
    assert decoder.head is decoder.embedding
    weights = (smollm2_dir / "model.safetensors").stat().st_size
    assert 0.99 * weights < models.bytes_of(decoder) < weights


def mappings(file):
    """(begin, end) of each part of memory that the file is mapped to."""
    lines = Path("/proc/self/maps").read_text(encoding="ascii").splitlines()
    spans = [line.split()[0] for line in lines if line.endswith(str(file))]
    return [tuple(int(number, 16) for number in span.split("-")) for span in spans]
