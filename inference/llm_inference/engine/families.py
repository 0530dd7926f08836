"""From the configuration and tensors of a checkpoint to a `Decoder`, for the families known here.

What is not known, in the configuration or among the tensors, is not read at all: transformers then
runs the model, slower and right. Knows the names of tensors in checkpoints. Does not know files,
devices or what runs a decoder.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_inference.engine.architectures import (
    ACTIVATIONS,
    FULL,
    SLIDING,
    Family,
    Settings,
    read_settings,
)
from llm_inference.engine.arrays import Array, rounded
from llm_inference.engine.decoder import Decoder, Layer, Rope
from llm_inference.engine.rope import UnknownModelError, read_rope
from llm_inference.engine.tensors import Tensors

logger = logging.getLogger(__name__)


def knows(config: Settings) -> bool:
    """Whether the configuration is one that is known here; its tensors may yet not be."""
    try:
        read_settings(config)
    except (UnknownModelError, TypeError):
        return False
    return True


def read_decoder(
    config: Settings, weights: Mapping[str, Array], *, dtype: str | None = None
) -> Decoder[Array] | None:
    """The decoder that a checkpoint holds, or None if anything about it is not known here.

    No matrix is copied or converted: the decoder's are where the checkpoint's are.

    Args:
        config: the parsed config.json.
        weights: the tensors by their names in the checkpoint.
        dtype: type that all of them will be converted to; None where they have one type already.
    """
    try:
        family, settings = read_settings(config)
        tensors = Tensors(weights, mixed=dtype is not None)
        decoder = _read(family, settings, tensors, dtype)
        tensors.check_all_read()
    except UnknownModelError as error:
        logger.info("transformers runs the model: %s", error)
        return None
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        # A configuration with values of the wrong kind: transformers says it better.
        logger.info("transformers runs the model: its configuration cannot be read: %r", error)
        return None
    return decoder


def _read(
    family: Family, settings: Settings, tensors: Tensors, dtype: str | None
) -> Decoder[Array]:
    heads, hidden = settings["num_attention_heads"], settings["hidden_size"]
    kv_heads = settings["num_key_value_heads"] or heads
    head_dim = settings["head_dim"] or hidden // heads
    if heads % kv_heads:
        raise UnknownModelError(f"{heads} query heads for {kv_heads} key heads")
    embedding = tensors.take("model.embed_tokens.weight", (settings["vocab_size"], hidden))
    if settings["tie_word_embeddings"]:
        # Some checkpoints hold the embedding a second time; transformers ties the two regardless.
        tensors.ignore("lm_head.weight")
        head = embedding
    else:
        head = tensors.take("lm_head.weight", (settings["vocab_size"], hidden))
    sizes = _Sizes(heads, kv_heads, head_dim, hidden, settings["intermediate_size"])
    kinds = _kinds(family, settings)
    places = zip(_windows(settings, kinds), _ropes(family, settings, kinds, head_dim), strict=True)
    bias = bool(settings["attention_bias"])
    layers = tuple(
        _read_layer(
            f"model.layers.{number}", family, sizes, tensors, bias=bias, window=window, rope=rope
        )
        for number, (window, rope) in enumerate(places)
    )
    scale = settings.get("query_pre_attn_scalar", head_dim) ** -0.5
    return Decoder(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        embedding=embedding,
        embedding_scale=_embedding_scale(family, settings, dtype or embedding.dtype),
        layers=layers,
        norm=tensors.norm("model.norm.weight", hidden, family.norm_offset),
        head=head,
        norm_eps=settings["rms_norm_eps"],
        attention_scale=settings.get("attention_multiplier", scale),
        attention_softcap=settings.get("attn_logit_softcapping"),
        logit_softcap=settings.get("final_logit_softcapping"),
        logit_scale=1.0 / settings.get("logits_scaling", 1.0),
        residual_scale=settings.get("residual_multiplier", 1.0),
        activation=family.activation or ACTIVATIONS[settings[family.activation_setting]],
        max_length=settings["max_position_embeddings"],
    )


@dataclass(frozen=True)
class _Sizes:
    """What the shapes of a layer's tensors follow from."""

    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int


def _read_layer(
    name: str,
    family: Family,
    sizes: _Sizes,
    tensors: Tensors,
    *,
    bias: bool,
    window: int | None,
    rope: Rope[Array] | None,
) -> Layer[Array]:
    hidden, dim = sizes.hidden, sizes.head_dim
    attention, mlp = f"{name}.self_attn", f"{name}.mlp"
    queries, keys = sizes.heads * dim, sizes.kv_heads * dim
    qkv_rows = (queries, keys, keys)
    parts = [f"{attention}.{part}_proj" for part in "qkv"]
    if family.fused:
        qkv = tensors.take(f"{attention}.qkv_proj.weight", (sum(qkv_rows), hidden))
        gate_up = tensors.take(f"{mlp}.gate_up_proj.weight", (2 * sizes.intermediate, hidden))
    else:
        qkv = tensors.fuse([f"{part}.weight" for part in parts], qkv_rows, hidden)
        gates = [f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"]
        gate_up = tensors.fuse(gates, [sizes.intermediate] * 2, hidden)
    qkv_bias = None
    if bias if family.qkv_bias is None else family.qkv_bias:
        qkv_bias = tensors.fuse([f"{part}.bias" for part in parts], qkv_rows)

    def norm(of: str, size: int = hidden) -> Array:
        return tensors.norm(f"{of}.weight", size, family.norm_offset)

    after = norm(f"{name}.post_attention_layernorm")
    return Layer(
        attention_norm=norm(f"{name}.input_layernorm"),
        qkv=qkv,
        qkv_bias=qkv_bias,
        query_norm=norm(f"{attention}.q_norm", dim) if family.norms_heads else None,
        key_norm=norm(f"{attention}.k_norm", dim) if family.norms_heads else None,
        output=tensors.take(f"{attention}.o_proj.weight", (hidden, queries)),
        output_bias=tensors.take(f"{attention}.o_proj.bias", (hidden,)) if bias else None,
        attention_post_norm=after if family.sandwich else None,
        mlp_norm=norm(f"{name}.pre_feedforward_layernorm") if family.sandwich else after,
        gate_up=gate_up,
        down=tensors.take(f"{mlp}.down_proj.weight", (hidden, sizes.intermediate)),
        mlp_post_norm=norm(f"{name}.post_feedforward_layernorm") if family.sandwich else None,
        window=window,
        rope=rope,
    )


def _kinds(family: Family, settings: Settings) -> list[str]:
    """The kind of attention of each layer."""
    kinds = settings.get("layer_types") or family.kinds(settings)
    if len(kinds) != settings["num_hidden_layers"] or not {FULL, SLIDING}.issuperset(kinds):
        raise UnknownModelError(f"layer_types {kinds}")
    return list(kinds)


def _windows(settings: Settings, kinds: list[str]) -> list[int | None]:
    """The window of each layer."""
    window = settings["sliding_window"] if settings.get("use_sliding_window", True) else None
    if SLIDING in kinds and (not isinstance(window, int) or window < 1):
        raise UnknownModelError(f"sliding layers with a window of {window}")
    return [window if kind == SLIDING else None for kind in kinds]


def _ropes(
    family: Family, settings: Settings, kinds: list[str], head_dim: int
) -> list[Rope[Array] | None]:
    """The rotary positions of each layer."""
    by_kind = {
        kind: _rope(family, _rope_parameters(family, settings, kind), settings, head_dim)
        for kind in dict.fromkeys(kinds)
    }
    ropes: list[Rope[Array] | None] = [by_kind[kind] for kind in kinds]
    if "no_rope_layers" in settings:
        interval, turned = settings["no_rope_layer_interval"], settings["no_rope_layers"]
        turned = turned or [(layer + 1) % interval != 0 for layer in range(len(kinds))]
        ropes = [rope if turns else None for rope, turns in zip(ropes, turned, strict=True)]
    return ropes


def _rope(
    family: Family, parameters: Mapping[str, Any], settings: Settings, head_dim: int
) -> Rope[Array]:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if family.rope_types and kind not in family.rope_types:
        raise UnknownModelError(f"rotary positions of type {kind} in this family")
    if "partial_rotary_factor" in family.settings:
        partial = {"partial_rotary_factor": settings["partial_rotary_factor"]}
        parameters = {**partial, **parameters}
    elif parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnknownModelError("partial rotary positions in this family")
    return read_rope(parameters, head_dim=head_dim, max_length=settings["max_position_embeddings"])


def _rope_parameters(family: Family, settings: Settings, kind: str) -> dict[str, Any]:
    """What describes the rotary positions of one kind of layer, in today's spelling."""
    new, old = settings["rope_parameters"], settings["rope_scaling"]
    if new and old:
        raise UnknownModelError("rope_parameters and rope_scaling at once")
    theta = settings["rope_theta"] or family.theta
    if family.local_theta is None:
        return {"rope_theta": theta, **(new or old or {})}
    if new:
        if not {FULL, SLIDING}.issuperset(new):
            raise UnknownModelError("rope_parameters that are not by kind of layer")
        new = new.get(kind) or {}
    if kind == FULL:
        return {"rope_theta": theta, **(new or old or {})}
    return {"rope_theta": settings["rope_local_base_freq"] or family.local_theta, **(new or {})}


def _embedding_scale(family: Family, settings: Settings, dtype: str) -> float:
    if family.scales_embedding:
        return float(settings["hidden_size"] ** 0.5)
    scale = float(settings.get("embedding_multiplier", 1.0))
    # A decoder's scale is rounded to the type of the embedding, this family's is not.
    if rounded(scale, dtype) != scale:
        raise UnknownModelError(f"embedding_multiplier {scale} in {dtype}")
    return scale
