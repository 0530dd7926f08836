"""Rotary positions from a model's configuration: how fast each pair of dimensions turns.

Knows the variants whose angles depend on the position alone: default, linear, llama3 and yarn, in
both spellings a config.json may have. What else there is depends on the length of the sequence, or
is not known here, and is refused.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llm_inference.engine.arrays import Array, rounded, singles
from llm_inference.engine.decoder import Rope

# What each variant reads beside its type and base; anything else is refused.
_KEYS = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        }
    ),
    "yarn": frozenset(
        {
            "factor",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "original_max_position_embeddings",
            "truncate",
        }
    ),
}
_COMMON = frozenset({"rope_theta", "rope_type", "type", "partial_rotary_factor"})


class UnknownModelError(Exception):
    """Something in a model's configuration or weights is not known here; the message names it."""


def read_rope(parameters: Mapping[str, Any], *, head_dim: int, max_length: int) -> Rope[Array]:
    """The rotary positions that `parameters` describe.

    Args:
        parameters: `rope_theta`, `rope_type`, and what the type needs.
        head_dim: dimensions of a head.
        max_length: the model's `max_position_embeddings`.

    Raises:
        UnknownModelError: the variant or one of its parameters is not known.
    """
    given = {key: value for key, value in parameters.items() if value is not None}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in _KEYS:
        raise UnknownModelError(f"rotary positions of type {kind}")
    if unknown := sorted(given.keys() - _COMMON - _KEYS[kind]):
        raise UnknownModelError(f"{unknown[0]} for rotary positions of type {kind}")
    dimensions = int(head_dim * given.get("partial_rotary_factor", 1.0))
    if dimensions % 2 or dimensions <= 0:
        raise UnknownModelError(f"{dimensions} rotary dimensions")
    base = float(given["rope_theta"])
    # Models were trained with what float32 made of these: it is rounded where torch would.
    turns = [_single(base ** _single(at / dimensions)) for at in range(0, dimensions, 2)]
    frequencies = [_single(1.0 / each) for each in turns]
    original = given.get("original_max_position_embeddings") or max_length
    if kind == "linear":
        return Rope(frequencies=singles(each / given["factor"] for each in frequencies))
    if kind == "llama3":
        return Rope(frequencies=singles(_llama3(frequencies, given, original)))
    if kind == "yarn":
        # Here null is not the default.
        given["truncate"] = parameters.get("truncate", True)
        return _yarn(base, turns, given, original, max_length)
    return Rope(frequencies=singles(frequencies))


def _single(number: float) -> float:
    return rounded(number, "float32")


def _llama3(frequencies: Sequence[float], given: Mapping[str, Any], original: int) -> list[float]:
    """Slow dimensions turn `factor` times slower, fast ones as before, and a ramp between."""
    factor: float = given["factor"]
    low: float = given["low_freq_factor"]
    high: float = given["high_freq_factor"]

    def slowed(frequency: float) -> float:
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            return frequency
        if wavelength > original / low:
            return frequency / factor
        smooth = (original / wavelength - low) / (high - low)
        return (1 - smooth) * frequency / factor + smooth * frequency

    return [slowed(frequency) for frequency in frequencies]


def _yarn(
    base: float, turns: Sequence[float], given: Mapping[str, Any], original: int, max_length: int
) -> Rope[Array]:
    """Interpolates slow dimensions, extrapolates fast ones, and sharpens attention a little."""
    dimensions = 2 * len(turns)
    factor = given.get("factor") or max_length / original

    def dimension_of(rotations: float) -> float:
        """The dimension that turns so many times within the original length."""
        wavelengths = original / (rotations * 2 * math.pi)
        return dimensions * math.log(wavelengths) / (2 * math.log(base))

    low = dimension_of(given.get("beta_fast") or 32)
    high = dimension_of(given.get("beta_slow") or 1)
    if given["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dimensions - 1)
    if low == high:
        high += 0.001
    ramps = [min(max((at - low) / (high - low), 0.0), 1.0) for at in range(len(turns))]
    frequencies = [
        ramp / (factor * turn) + (1 - ramp) / turn for ramp, turn in zip(ramps, turns, strict=True)
    ]
    return Rope(frequencies=singles(frequencies), scale=_yarn_scale(given, factor))


def _yarn_scale(given: Mapping[str, Any], factor: float) -> float:
    if (scale := given.get("attention_factor")) is not None:
        return float(scale)

    def grown(by: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0

    mscale, all_dimensions = given.get("mscale"), given.get("mscale_all_dim")
    if mscale and all_dimensions:
        return grown(mscale) / grown(all_dimensions)
    return grown()
