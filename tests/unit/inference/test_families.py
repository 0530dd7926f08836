"""Decoders read from checkpoints compute what transformers computes, for every family."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from llm_inference.engine import reference
from llm_inference.engine.architectures import COMMON, FAMILIES
from llm_inference.engine.families import knows
from llm_inference.engine.families import read_decoder as read_arrays
from llm_inference.engine.torch_decoder import array_of, to_torch

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
TOKENS = torch.randint(0, 97, (60,), generator=torch.Generator().manual_seed(1))
WINDOW = {"sliding_window": 16}
BY_LAYER = {"layer_types": ["full_attention", "sliding_attention"] * 2}
MODELS = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biased": ("llama", {"attention_bias": True}),
    "llama multi-query": ("llama", {"num_key_value_heads": 1, "head_dim": None}),
    "llama linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
    ),
    "llama llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
    "llama yarn deepseek": (
        "llama",
        {"rope_parameters": YARN | {"mscale": 1.2, "mscale_all_dim": 0.8, "truncate": False}},
    ),
    "llama yarn scaled": (
        "llama",
        {"rope_parameters": YARN | {"attention_factor": 1.3, "beta_fast": 16, "beta_slow": 2}},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral window": ("mistral", WINDOW),
    "qwen2": ("qwen2", {}),
    "qwen2 window": ("qwen2", WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen2 by layer": ("qwen2", WINDOW | BY_LAYER | {"use_sliding_window": True}),
    "qwen3": ("qwen3", {}),
    "qwen3 biased": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "phi3": ("phi3", {}),
    "phi3 partial": ("phi3", WINDOW | {"partial_rotary_factor": 0.5}),
    "gemma": ("gemma", {}),
    "gemma tied": ("gemma", {"tie_word_embeddings": True, "hidden_act": "gelu"}),
    "gemma2": ("gemma2", WINDOW),
    "gemma2 soft": (
        "gemma2",
        WINDOW
        | {
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 20,
            "attention_bias": True,
        },
    ),
    "gemma3": ("gemma3_text", WINDOW | {"num_hidden_layers": 7}),
    "gemma3 by layer": (
        "gemma3_text",
        WINDOW
        | BY_LAYER
        | {
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
    ),
    "smollm3": ("smollm3", {}),
    "smollm3 some turn": ("smollm3", {"no_rope_layers": [0, 1, 0, 1]}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.3,
        },
    ),
}


def read_decoder(config, weights, **more):
    """Of tensors, with tensors."""
    arrays = {name: array_of(tensor) for name, tensor in weights.items()}
    found = read_arrays(config, arrays, **more)
    return None if found is None else to_torch(found)


@pytest.fixture
def save(tmp_path):
    """Make a random model, save it, and read it back: model, config.json, tensors."""

    def begin(family, **more):
        torch.manual_seed(3)
        config = AutoConfig.for_model(family, **{**SHAPE, **more})
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        return model, saved, load_file(tmp_path / "model.safetensors")

    return begin


def expected_logits(model, tokens):
    with torch.inference_mode():
        return model(tokens[None]).logits[0]


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers(save, name):
    family, more = MODELS[name]
    model, config, weights = save(family, **more)
    decoder = read_decoder(config, weights)
    assert decoder is not None
    expected = expected_logits(model, TOKENS)
    got = reference.logits(decoder, TOKENS)
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


def test_every_family_is_compared():
    assert {family for family, _ in MODELS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_configuration_leaves_out_is_what_transformers_assumes(name):
    assumed = {**COMMON, **FAMILIES[name].settings}
    theirs = type(AutoConfig.for_model(name))
    both = assumed.keys() & {field.name for field in dataclasses.fields(theirs)}
    assert len(both) > 6
    assert {key: assumed[key] for key in both} == {key: getattr(theirs, key) for key in both}


@pytest.mark.parametrize(
    ("family", "new", "old"),
    [
        ("llama", {"rope_theta": 500.0, "rope_type": "default"}, {"rope_theta": 500.0}),
        (
            "llama",
            LLAMA3,
            {"rope_theta": 10_000.0, "rope_scaling": LLAMA3},
        ),
        (
            "mistral",
            {"rope_theta": 500.0, "rope_type": "linear", "factor": 4.0},
            {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
        ),
        (
            "gemma3_text",
            {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
            {
                "rope_theta": 5000.0,
                "rope_local_base_freq": 300.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
    ],
)
def test_the_old_spelling_of_rotary_positions_is_read(save, family, new, old):
    model, config, weights = save(family, rope_parameters=new)
    del config["rope_parameters"]
    decoder = read_decoder(config | old, weights)
    expected = expected_logits(model, TOKENS)
    assert (reference.logits(decoder, TOKENS) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gpt2"},
        {"model_type": None},
        {"quantization_config": {"quant_method": "fp8"}},
        {"mlp_bias": True},
        {"attention_sinks": 4},
        {"hidden_act": "relu"},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": "four"},
        {"vocab_size": 98},
        {"num_key_value_heads": 3},
        {"tie_word_embeddings": True, "attention_bias": True},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0}},
        {"rope_parameters": {"rope_theta": 10_000.0, "mrope_section": [2, 2, 2]}},
        {"rope_parameters": {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5}},
        {"partial_rotary_factor": 0.5},
        {"sliding_window": 16},
    ],
)
def test_a_configuration_that_is_not_known_is_left_to_transformers(save, change):
    _, config, weights = save("llama")
    assert read_decoder(config, weights) is not None
    assert read_decoder(config | change, weights) is None


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("phi3", {"rope_scaling": {"type": "longrope"}}),
        ("gemma2", {"use_bidirectional_attention": True}),
        ("gemma2", {"sliding_window": None}),
        ("qwen2", {"layer_types": ["sliding_attention"] * 4}),
        ("qwen2", {"layer_types": ["linear_attention"] * 4}),
        ("granite", {"embedding_multiplier": 12.1}),
        ("smollm3", {"no_rope_layers": [1, 0]}),
    ],
)
def test_what_a_family_does_not_know_is_left_to_transformers(save, family, change):
    _, config, weights = save(family)
    half = {name: tensor.bfloat16() for name, tensor in weights.items()}
    assert read_decoder(config, half) is not None
    assert read_decoder(config | change, half) is None


def test_tensors_that_are_missing_or_left_over_or_of_two_types_are_left_to_transformers(save):
    _, config, weights = save("llama")
    name = "model.layers.2.mlp.up_proj.weight"
    less = {key: tensor for key, tensor in weights.items() if key != name}
    assert read_decoder(config, less) is None
    assert read_decoder(config, weights | {"model.layers.2.mlp.up_proj.bias": TOKENS}) is None
    assert read_decoder(config, weights | {name: weights[name].bfloat16()}) is None
    derived = {"model.layers.2.self_attn.rotary_emb.inv_freq": torch.ones(6)}
    assert read_decoder(config, weights | derived) is not None


def test_tensors_of_two_types_are_read_where_all_will_be_converted(save):
    _, config, weights = save("llama")
    name = "model.layers.2.self_attn.o_proj.weight"
    mixed = weights | {name: weights[name].bfloat16(), "model.norm.weight": torch.ones(32).half()}
    assert read_decoder(config, mixed) is None
    decoder = read_decoder(config, mixed, dtype="float32")
    assert decoder.layers[2].output.dtype is torch.bfloat16
    assert torch.equal(decoder.norm, torch.ones(32))
    name = "model.layers.2.self_attn.k_proj.weight"
    assert read_decoder(config, weights | {name: weights[name].half()}, dtype="float32") is None


def test_a_family_is_known_by_its_configuration():
    assert knows({"model_type": "llama", **SHAPE})
    assert not knows({"model_type": "gpt2", **SHAPE})
    assert not knows({"model_type": "llama", **SHAPE, "attention_sinks": 4})
    assert not knows({"model_type": ["llama"]})


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_nothing_is_copied(save, family):
    _, config, weights = save(family, tie_word_embeddings=True)
    decoder = read_arrays(config, {name: array_of(tensor) for name, tensor in weights.items()})
    layer, name = decoder.layers[1], "model.layers.1"
    qkv = ["qkv_proj"] if family == "phi3" else ["q_proj", "k_proj", "v_proj"]
    gate_up = ["gate_up_proj"] if family == "phi3" else ["gate_proj", "up_proj"]
    for array, *sources in (
        (decoder.embedding, "model.embed_tokens.weight"),
        (decoder.head, "model.embed_tokens.weight"),
        (layer.qkv, *(f"{name}.self_attn.{part}.weight" for part in qkv)),
        (layer.output, f"{name}.self_attn.o_proj.weight"),
        (layer.gate_up, *(f"{name}.mlp.{part}.weight" for part in gate_up)),
        (layer.down, f"{name}.mlp.down_proj.weight"),
    ):
        addresses = [weights[source].data_ptr() for source in sources]
        assert [piece.address for piece in array.pieces] == addresses


def test_norms_are_float32_whatever_the_matrices_are(save):
    _, config, weights = save("gemma3_text")
    decoder = read_decoder(config, {name: tensor.bfloat16() for name, tensor in weights.items()})
    assert decoder.dtype is decoder.layers[0].qkv.dtype is torch.bfloat16
    norm = decoder.layers[0].key_norm
    assert norm.dtype is torch.float32
    stored = weights["model.layers.0.self_attn.k_norm.weight"].bfloat16().float()
    assert torch.equal(norm, 1 + stored)
