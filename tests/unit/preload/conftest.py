"""Tiny models, whole and in the formats that a build takes."""

import json

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from llm_preload import __main__ as command_line

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
ENDS = ("<s>", "</s>", "<turn>")
MERGES = [("t", "h"), ("th", "e"), ("1", "2"), ("1", "2")]


def vocabulary():
    """Tokens in the order of their ids, and merges."""
    merges = list(dict.fromkeys(MERGES))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*ENDS, *alphabet, *(a + b for a, b in merges)], merges


@pytest.fixture(scope="session")
def new_model():
    """Make a model with random weights of a type, e.g. llama."""

    def make(model_type="llama", **settings):
        torch.manual_seed(1)
        config = AutoConfig.for_model(model_type, **(SHAPE | settings))
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():  # biases and norms begin as constants
            torch.nn.init.normal_(parameter, 0.3, 0.1)
        return model

    return make


@pytest.fixture(scope="session")
def write_tokenizer():
    def write(directory):
        tokens, merges = vocabulary()
        ids = {token: number for number, token in enumerate(tokens)}
        backend = Tokenizer(models.BPE(ids, merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
        )
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(directory)

    return write


@pytest.fixture
def write_model(new_model, write_tokenizer):
    """Write a plain model directory, as a hub repository holds one."""

    def write(directory, shards=1, **settings):
        model = new_model(**settings)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        model.save_pretrained(directory, max_shard_size=size // shards + 1)
        write_tokenizer(directory)
        return directory

    return write


def permuted(weight, heads):
    """The rows of a query or key as Llama's GGUF files have them."""
    return (
        weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)
    )


@pytest.fixture
def write_gguf():
    """Write a model as one GGUF file; the arguments say what it says besides, or not at all."""

    def write(path, model, *, pre="gpt-2", template=TEMPLATE, says=None, tensors=None, kind=None):
        config, name = model.config, model.config.model_type
        writer = gguf.GGUFWriter(path, name)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_vocab_size(config.vocab_size)
        tokens, merges = vocabulary()
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([3] * len(ENDS) + [1] * (len(tokens) - len(ENDS)))
        writer.add_token_merges([f"{a} {b}" for a, b in merges])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        if template is not None:
            writer.add_chat_template(template)
        for key, value in (says or {}).items():
            add = writer.add_string if isinstance(value, str) else writer.add_uint32
            add(key, value)
        arch = gguf.MODEL_ARCH[name.upper()]
        names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
        held = {}
        for key, value in model.state_dict().items():
            if key == "lm_head.weight" and config.tie_word_embeddings:
                continue
            stem, _, suffix = key.rpartition(".")
            weight = value.float().numpy()
            if name == "llama" and ("q_proj" in key or "k_proj" in key):
                heads = (
                    config.num_attention_heads if "q_proj" in key else SHAPE["num_key_value_heads"]
                )
                weight = permuted(weight, heads)
            held[f"{names.get_name(stem)}.{suffix}"] = weight
        for key, value in (held | (tensors or {})).items():
            if value is None:
                continue
            array = np.ascontiguousarray(value, dtype=np.float32)
            if kind is not None and array.ndim > 1:
                packed = gguf.quants.quantize(array, kind)
                writer.add_tensor(key, packed, raw_dtype=kind)
            else:
                writer.add_tensor(key, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def preload(monkeypatch, capsys):
    """Run one command of `python -m llm_preload`; returns its exit code and what it wrote."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["llm_preload", *map(str, arguments)])
        code = command_line.main()
        written = capsys.readouterr()
        return code, written.out + written.err

    return run


@pytest.fixture
def take(preload, tmp_path):
    """Take a model from a directory; returns the model directory that the build has then."""

    def run(context, *arguments, name="model"):
        target = tmp_path / name
        target.mkdir()
        scratch = ("--context", context, "--scratch", tmp_path / "scratch", target)
        code, said = preload("fetch", "--id", "org/tiny", *arguments, *scratch)
        assert code == 0, said
        return target

    return run


@pytest.fixture
def refusal(preload, tmp_path):
    """Take a model from a directory, in vain; returns the sentence."""

    def run(context, *arguments):
        target = tmp_path / "refused"
        target.mkdir()
        where = ("--context", context, "--scratch", tmp_path / "scratch", target)
        code, said = preload("fetch", *arguments, *where)
        assert code == 1, said
        return said.splitlines()[-1]

    return run


@pytest.fixture
def manifest():
    return lambda directory: json.loads((directory / "manifest.json").read_text())
