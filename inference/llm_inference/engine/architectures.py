"""Families of models: what their configurations may say, and what is assumed where they do not.

A family is a table. A config.json that has anything beyond it is refused, because what is not known
to be harmless may change the arithmetic. The values are those of transformers' own configurations.
Knows configurations. Does not know tensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llm_inference.engine.rope import UnknownModelError

Settings = Mapping[str, Any]

FULL, SLIDING = "full_attention", "sliding_attention"
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
# Every family reads these; the values are what transformers assumes.
COMMON: Settings = {
    "attention_bias": False,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "num_key_value_heads": None,
    "rms_norm_eps": 1e-6,
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": None,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
# What config.json says about training, generation and files, and not about the arithmetic.
_HARMLESS = frozenset(
    """
    _attn_implementation_autoset _model_name_or_path _name_or_path architectures attention_dropout
    auto_map bad_words_ids begin_suppress_tokens bos_token_id cache_implementation do_sample dtype
    early_stopping embd_pdrop eos_token_id finetuning_task id2label initializer_range
    is_llama_config label2id length_penalty max_length min_length model_type no_repeat_ngram_size
    num_beams num_return_sequences output_attentions output_hidden_states pad_token_id prefix
    pretraining_tp problem_type repetition_penalty resid_pdrop return_dict sep_token_id
    suppress_tokens task_specific_params temperature tokenizer_class top_k top_p torch_dtype
    torchscript transformers.js_config transformers_version typical_p unk_token_id use_bfloat16
    use_cache
    """.split()  # noqa: SIM905 - one name a line would fill a page
)
_COMMON_FIXED: dict[str, tuple[object, ...]] = {"mlp_bias": (False,)}

Activation = Literal["silu", "gelu_tanh", "gelu"]
ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def _no_windows(settings: Settings) -> list[str]:
    return [FULL] * settings["num_hidden_layers"]


def _one_window(settings: Settings) -> list[str]:
    """Every layer slides if the model has a window at all."""
    slides = settings["sliding_window"] is not None
    return [SLIDING if slides else FULL] * settings["num_hidden_layers"]


def _upper_windows(settings: Settings) -> list[str]:
    """Qwen's layers from `max_window_layers` on slide, if `use_sliding_window` says so."""
    slides = settings["use_sliding_window"] and settings["sliding_window"] is not None
    return [
        SLIDING if slides and layer >= settings["max_window_layers"] else FULL
        for layer in range(settings["num_hidden_layers"])
    ]


def _every_nth_full(settings: Settings) -> list[str]:
    """All layers slide but each `sliding_window_pattern`-th."""
    pattern = settings["sliding_window_pattern"]
    return [
        SLIDING if (layer + 1) % pattern else FULL for layer in range(settings["num_hidden_layers"])
    ]


@dataclass(frozen=True, kw_only=True)
class Family:
    """What one family's configurations may say, and what its models are like.

    Attributes:
        settings: what the family reads beside or unlike the common settings, with the values that
            are assumed where config.json says nothing.
        fixed: settings of which only these values are known.
        kinds: the kind of attention of each layer, where `layer_types` does not say it.
        theta: base of the rotary positions, where nothing says it.
        local_theta: base of those of sliding layers, where they have their own.
        rope_types: kinds of rotary positions that are known, None for all that are at all.
        activation: of the gate, where no setting says it.
        activation_setting: the setting that says it.
        norm_offset: added to the weights of norms.
        scales_embedding: by the root of the hidden size.
        sandwich: whether a layer's two outputs are normed as well.
        fused: whether the checkpoint holds query, key and value, and gate and up, as one matrix.
        norms_heads: whether queries and keys are normed.
        qkv_bias: whether they always have a bias; None where `attention_bias` says it.
    """

    settings: Settings = field(default_factory=dict)
    fixed: dict[str, tuple[object, ...]] = field(default_factory=dict)
    kinds: Callable[[Settings], list[str]] = _no_windows
    theta: float = 10_000.0
    local_theta: float | None = None
    rope_types: tuple[str, ...] | None = None
    activation: Activation | None = None
    activation_setting: str = "hidden_act"
    norm_offset: float = 0.0
    scales_embedding: bool = False
    sandwich: bool = False
    fused: bool = False
    norms_heads: bool = False
    qkv_bias: bool | None = None


_LAYER_TYPES: Settings = {"layer_types": None}
_QWEN: Settings = {
    **_LAYER_TYPES,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "use_sliding_window": False,
    # Of a multimodal or older relative; of no effect here.
    "use_mrope": False,
}
_GEMMA: Settings = {
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": None,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": None,
}
_LATER_GEMMA: Settings = {
    **_GEMMA,
    **_LAYER_TYPES,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_ONE_WAY: dict[str, tuple[object, ...]] = {"use_bidirectional_attention": (None, False)}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        settings={"rope_interleaved": False},
        fixed={"rope_interleaved": (False,), "sliding_window": (None,)},
    ),
    "mistral": Family(
        settings={
            "max_position_embeddings": 4096 * 32,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
        fixed={"attention_bias": (False,)},
        kinds=_one_window,
    ),
    "qwen2": Family(
        settings=_QWEN,
        fixed={"attention_bias": (False,), "use_mrope": (False,)},
        kinds=_upper_windows,
        qkv_bias=True,
    ),
    "qwen3": Family(
        settings={**_QWEN, "head_dim": 128},
        fixed={"use_mrope": (False,)},
        kinds=_upper_windows,
        norms_heads=True,
    ),
    "phi3": Family(
        settings={
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 1.0,
            "rms_norm_eps": 1e-5,
        },
        fixed={"attention_bias": (False,), "rope_scaling": (None,)},
        kinds=_one_window,
        rope_types=("default",),
        fused=True,
    ),
    "gemma": Family(
        settings={**_GEMMA, "num_key_value_heads": 16},
        fixed={
            # The first release said gelu and meant its approximation.
            "hidden_act": ("gelu", "gelu_pytorch_tanh"),
            "hidden_activation": (None, "gelu_pytorch_tanh"),
            "sliding_window": (None,),
            **_ONE_WAY,
        },
        activation="gelu_tanh",
        norm_offset=1.0,
        scales_embedding=True,
    ),
    "gemma2": Family(
        settings={
            **_LATER_GEMMA,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window_pattern": 2,
        },
        fixed={"sliding_window_pattern": (2,), **_ONE_WAY},
        kinds=_every_nth_full,
        activation_setting="hidden_activation",
        norm_offset=1.0,
        scales_embedding=True,
        sandwich=True,
    ),
    "gemma3_text": Family(
        settings={
            **_LATER_GEMMA,
            "_sliding_window_pattern": None,  # written, but never read again
            "max_position_embeddings": 131_072,
            "rope_local_base_freq": None,
            "use_bidirectional_attention": False,
            "sliding_window_pattern": 6,
        },
        # transformers reads attn_logit_softcapping and then does nothing with it.
        fixed={"attn_logit_softcapping": (None,), **_ONE_WAY},
        kinds=_every_nth_full,
        activation_setting="hidden_activation",
        theta=1_000_000.0,
        local_theta=10_000.0,
        norm_offset=1.0,
        scales_embedding=True,
        sandwich=True,
        norms_heads=True,
    ),
    "smollm3": Family(
        settings={
            **_LAYER_TYPES,
            "max_position_embeddings": 32768,
            "max_window_layers": None,
            "no_rope_layer_interval": 4,
            "no_rope_layers": None,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
        fixed={"use_sliding_window": (False,)},
        theta=2_000_000.0,
    ),
    "granite": Family(
        settings={
            "attention_multiplier": 1.0,
            "embedding_multiplier": 1.0,
            "logits_scaling": 1.0,
            "residual_multiplier": 1.0,
        },
        fixed={"sliding_window": (None,)},
    ),
}


def read_settings(config: Settings) -> tuple[Family, Settings]:
    """The family and its settings, complete.

    Raises:
        UnknownModelError: the configuration says something that is not in the family's table.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UnknownModelError(f"models of type {name}")
    family = FAMILIES[name]
    known = {*COMMON, *family.settings, *_REQUIRED, "num_attention_heads"}
    for key, value in config.items():
        if key not in known and key not in _HARMLESS and value is not None:
            raise UnknownModelError(f"the setting {key}")
    settings = {**COMMON, **family.settings, **{k: config[k] for k in known if k in config}}
    for key, values in (_COMMON_FIXED | family.fixed).items():
        if settings[key] not in values:
            raise UnknownModelError(f"{key} {settings[key]}")
    return family, settings
