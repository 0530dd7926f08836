"""The tensors of a checkpoint, taken by name: each has the shape that is expected of it.

Knows names and shapes. Does not know files or what a model does with its tensors.
"""

from collections.abc import Mapping, Sequence

from llm_inference.engine.arrays import FLOATING, Array, stack, widened
from llm_inference.engine.rope import UnknownModelError

# Older checkpoints hold what follows from the configuration.
_DERIVED = (".rotary_emb.inv_freq",)


class Tensors:
    """Takes tensors out of a checkpoint and remembers which.

    Args:
        weights: the tensors by name.
        mixed: whether they may be of several floating point types.
    """

    def __init__(self, weights: Mapping[str, Array], *, mixed: bool = False) -> None:
        self._weights = weights
        self._left = {name for name in weights if not name.endswith(_DERIVED)}
        self._mixed = mixed
        self._dtype: str | None = None

    def take(self, name: str, shape: Sequence[int]) -> Array:
        """The tensor of this name.

        Raises:
            UnknownModelError: it is missing, or has another shape or type than expected.
        """
        if name not in self._weights:
            raise UnknownModelError(f"a checkpoint without {name}")
        tensor = self._weights[name]
        self._left.discard(name)
        if tensor.shape != tuple(shape):
            raise UnknownModelError(f"{name} of shape {tensor.shape}, not {tuple(shape)}")
        if self._mixed or self._dtype is None:
            self._dtype = tensor.dtype
        if tensor.dtype != self._dtype or tensor.dtype not in FLOATING:
            raise UnknownModelError(f"{name} of type {tensor.dtype}")
        return tensor

    def fuse(self, names: Sequence[str], rows: Sequence[int], *columns: int) -> Array:
        """The tensors of these names, (rows[i], *columns), one below the other; not copied."""
        parts = [
            self.take(name, (count, *columns)) for name, count in zip(names, rows, strict=True)
        ]
        if len({part.dtype for part in parts}) > 1:
            raise UnknownModelError(f"{names[0]} and {names[-1]} of different types")
        return stack(parts)

    def norm(self, name: str, size: int, offset: float) -> Array:
        """A norm's weights in float32, `offset` added."""
        return widened(self.take(name, (size,)), offset)

    def ignore(self, name: str) -> None:
        """Let a tensor be there that nobody takes."""
        self._left.discard(name)

    def check_all_read(self) -> None:
        """Make sure that nothing was left over.

        Raises:
            UnknownModelError: the checkpoint has a tensor that was not asked for.
        """
        if self._left:
            raise UnknownModelError(f"a checkpoint with {min(self._left)}")
