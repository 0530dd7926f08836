"""Decoders whose weights are torch's tensors: for devices, and for arithmetic written in torch.

Knows how arrays and tensors share memory. Does not know what runs a decoder.
"""

import torch

from llm_inference.engine import decoder as described
from llm_inference.engine.arrays import Array, Piece

Layer = described.Layer[torch.Tensor]
Rope = described.Rope[torch.Tensor]


class Decoder(described.Decoder[torch.Tensor]):
    """A whole model on one device."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the matrices."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device


def to_torch(
    decoder: described.Decoder[Array],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Decoder:
    """The decoder with tensors on `device`; its matrices in `dtype`, or as they are.

    What lies on the cpu in one piece, and is not converted, is not copied.
    """
    return described.mapped(
        decoder,
        Decoder,
        lambda matrix: tensor_of(matrix, dtype=dtype, device=device),
        lambda norm: tensor_of(norm, device=device),
    )


def from_torch(decoder: Decoder) -> described.Decoder[Array]:
    """The decoder with arrays in the memory of its tensors, which are on the cpu."""
    return described.mapped(decoder, described.Decoder[Array], array_of, array_of)


def tensor_of(
    array: Array, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """An array as a tensor."""
    own: torch.dtype = getattr(torch, array.dtype)
    parts = [
        torch.frombuffer(view, dtype=own) if len(view) else torch.empty(0, dtype=own)
        for view in array.views()
    ]
    parts = [part.to(device=device, dtype=dtype) for part in parts]
    flat = parts[0] if len(parts) == 1 else torch.cat(parts)
    return flat.view(array.shape)


def array_of(tensor: torch.Tensor) -> Array:
    """A tensor on the cpu as an array; it is copied only where it is not contiguous."""
    tensor = tensor.detach().contiguous()
    rows = tensor.shape[0] if tensor.dim() else 1
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Array(dtype, tuple(tensor.shape), (Piece(tensor.data_ptr(), rows, tensor),))
