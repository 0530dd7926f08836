"""The tensors of a checkpoint, taken by name: each has the shape that is expected of it.

Knows names and shapes. Does not know files or what a model does with its tensors.
"""

from collections.abc import Mapping, Sequence

import torch

from llm_inference.engine.rope import UnknownModelError

# Older checkpoints hold what follows from the configuration.
_DERIVED = (".rotary_emb.inv_freq",)


class Tensors:
    """Takes tensors out of a checkpoint and remembers which.

    Args:
        weights: the tensors by name; all of one type.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights = weights
        self._left = {name for name in weights if not name.endswith(_DERIVED)}
        self._dtype: torch.dtype | None = None

    def take(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """The tensor of this name.

        Raises:
            UnknownModelError: it is missing, or has another shape or type than expected.
        """
        if name not in self._weights:
            raise UnknownModelError(f"a checkpoint without {name}")
        tensor = self._weights[name]
        self._left.discard(name)
        if tensor.shape != torch.Size(shape):
            raise UnknownModelError(f"{name} of shape {tuple(tensor.shape)}, not {tuple(shape)}")
        self._dtype = self._dtype or tensor.dtype
        if tensor.dtype != self._dtype or not tensor.is_floating_point():
            raise UnknownModelError(f"{name} of type {tensor.dtype}")
        return tensor.contiguous()

    def fuse(self, names: Sequence[str], rows: Sequence[int], *columns: int) -> torch.Tensor:
        """The tensors of these names, (rows[i], *columns), one below the other; a copy."""
        parts = [
            self.take(name, (count, *columns)) for name, count in zip(names, rows, strict=True)
        ]
        return torch.cat(parts)

    def norm(self, name: str, size: int, offset: float) -> torch.Tensor:
        """A norm's weights in float32, `offset` added."""
        return self.take(name, (size,)).float() + offset

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
