"""A decoder's forward passes on a CUDA device: one token of many rows, or many tokens of one row.

Knows the order of the arithmetic and which kernel or library does what. Everything of a decode
pass happens on the device, in tensors whose addresses never change, so that a pass can be captured
as a graph and replayed for other tokens, rows and lengths.
"""

from dataclasses import replace

import torch
from torch.nn.functional import scaled_dot_product_attention

from llm_inference.engine.cuda_kernels import Kernels
from llm_inference.engine.torch_decoder import Decoder, Layer, Rope

# Queries whose scores are held at once where no library's attention fits.
_SCORED_QUERIES = 256


class StepTensors:
    """What a decode step of up to `rows` tokens reads and writes; its addresses stay.

    Attributes:
        inputs: int32 (3, rows): tokens, rows of the cache, positions. A negative position marks
            a place without a token.
        logits: (rows, vocabulary).
        chosen: int32 (rows,): the largest logit's index, -1 where it is not finite.
    """

    def __init__(self, decoder: Decoder, rows: int) -> None:
        def empty(columns: int) -> torch.Tensor:
            return torch.zeros((rows, columns), dtype=decoder.dtype, device=decoder.device)

        intermediate = decoder.layers[0].down.shape[1]
        self.inputs = torch.zeros((3, rows), dtype=torch.int32, device=decoder.device)
        self.residual, self.normed = empty(decoder.hidden), empty(decoder.hidden)
        self.delta = empty(decoder.hidden)
        self.qkv = empty((decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim)
        self.attended = empty(decoder.heads * decoder.head_dim)
        self.gate_up, self.activated = empty(2 * intermediate), empty(intermediate)
        self.logits = empty(decoder.vocabulary)
        self.chosen = torch.zeros(rows, dtype=torch.int32, device=decoder.device)


class Forward:
    """Forward passes of one decoder over one cache.

    Args:
        decoder: the weights.
        kernels: compiled for it.
        cache: (layers, 2, rows, kv_heads, max_length, head_dim), keys and then values.
        step: tensors of the decode passes.
    """

    def __init__(
        self, decoder: Decoder, kernels: Kernels, cache: torch.Tensor, step: StepTensors
    ) -> None:
        self._decoder, self._kernels, self._cache, self._step = decoder, kernels, cache, step
        self._ropes = [_on_device(layer.rope, decoder.device) for layer in decoder.layers]
        self._normed_outputs = any(
            layer.attention_post_norm is not None or layer.mlp_post_norm is not None
            for layer in decoder.layers
        )

    def decode(self, count: int) -> None:
        """One step of the first `count` of the step's inputs: fills `logits` and `chosen`."""
        step, kernels, decoder = self._step, self._kernels, self._decoder
        tokens, rows, positions = (row[:count] for row in step.inputs)
        kernels.embed(step.residual[:count], tokens)
        if count == 1 and kernels.takes_vectors and not self._normed_outputs:
            self._decode_vector(rows, positions)
        else:
            self._decode_rows(rows, positions)
        logits = step.logits[:count]
        if decoder.logit_scale != 1.0:
            logits.mul_(decoder.logit_scale)
        if decoder.logit_softcap is not None:
            logits.copy_(torch.tanh(logits / decoder.logit_softcap) * decoder.logit_softcap)
        kernels.argmax(step.chosen, logits)

    def _decode_rows(self, rows: torch.Tensor, positions: torch.Tensor) -> None:
        step, kernels, count = self._step, self._kernels, len(rows)
        residual, normed, delta = (
            tensor[:count] for tensor in (step.residual, step.normed, step.delta)
        )
        qkv, attended = step.qkv[:count], step.attended[:count]
        gate_up, activated = step.gate_up[:count], step.activated[:count]
        kernels.add_norm(residual, None, self._decoder.layers[0].attention_norm, normed)
        for number, layer in enumerate(self._decoder.layers):
            _multiply(normed, layer.qkv, layer.qkv_bias, qkv)
            self._turn_and_store(number, qkv, rows, positions)
            kernels.attend(attended, qkv, self._cache[number], rows, positions, window=layer.window)
            _multiply(attended, layer.output, layer.output_bias, delta)
            kernels.add_norm(
                residual, delta, layer.mlp_norm, normed, post=layer.attention_post_norm
            )
            _multiply(normed, layer.gate_up, None, gate_up)
            kernels.activate(activated, gate_up)
            _multiply(activated, layer.down, None, delta)
            kernels.add_norm(
                residual, delta, self._next_norm(number), normed, post=layer.mlp_post_norm
            )
        _multiply(normed, self._decoder.head, None, step.logits[:count])

    def _decode_vector(self, rows: torch.Tensor, positions: torch.Tensor) -> None:
        """One row: norms, biases, activation and sums are parts of the products' kernels."""
        step, kernels = self._step, self._kernels
        for number, layer in enumerate(self._decoder.layers):
            kernels.gemv(
                step.qkv, step.residual, layer.qkv, norm=layer.attention_norm, bias=layer.qkv_bias
            )
            self._turn_and_store(number, step.qkv, rows, positions)
            kernels.attend(
                step.attended, step.qkv, self._cache[number], rows, positions, window=layer.window
            )
            kernels.gemv(
                None, step.attended, layer.output, bias=layer.output_bias, residual=step.residual
            )
            kernels.gemv_gate_up(step.activated, step.residual, layer.mlp_norm, layer.gate_up)
            kernels.gemv(None, step.activated, layer.down, residual=step.residual)
        kernels.gemv(step.logits, step.residual, self._decoder.head, norm=self._decoder.norm)

    def prefill(self, row: int, tokens: torch.Tensor, start: int) -> torch.Tensor:
        """Read int32 `tokens` at positions `start`... into `row`.

        Returns the logits of the last one, (1, vocabulary).
        """
        decoder, kernels = self._decoder, self._kernels
        count = len(tokens)
        rows = torch.full_like(tokens, row)
        positions = torch.arange(start, start + count, dtype=torch.int32, device=tokens.device)
        residual = tokens.new_empty((count, decoder.hidden), dtype=decoder.dtype)
        normed = torch.empty_like(residual)
        kernels.embed(residual, tokens)
        kernels.add_norm(residual, None, decoder.layers[0].attention_norm, normed)
        for number, layer in enumerate(decoder.layers):
            qkv = _product(normed, layer.qkv, layer.qkv_bias)
            self._turn_and_store(number, qkv, rows, positions)
            attended = self._attend_prompt(layer, qkv, self._cache[number, :, row], start)
            delta = _product(attended, layer.output, layer.output_bias)
            kernels.add_norm(
                residual, delta, layer.mlp_norm, normed, post=layer.attention_post_norm
            )
            gate_up = _product(normed, layer.gate_up, None)
            activated = gate_up.new_empty((count, layer.down.shape[1]))
            kernels.activate(activated, gate_up)
            delta = _product(activated, layer.down, None)
            kernels.add_norm(
                residual, delta, self._next_norm(number), normed, post=layer.mlp_post_norm
            )
        logits = _product(normed[-1:], decoder.head, None)
        if decoder.logit_scale != 1.0:
            logits = logits * decoder.logit_scale
        if decoder.logit_softcap is not None:
            logits = torch.tanh(logits / decoder.logit_softcap) * decoder.logit_softcap
        return logits

    def _next_norm(self, number: int) -> torch.Tensor:
        layers = self._decoder.layers
        return layers[number + 1].attention_norm if number + 1 < len(layers) else self._decoder.norm

    def _turn_and_store(
        self, number: int, qkv: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor
    ) -> None:
        layer = self._decoder.layers[number]
        self._kernels.turn_and_store(
            qkv,
            self._cache[number],
            rows,
            positions,
            query_norm=layer.query_norm,
            key_norm=layer.key_norm,
            rope=self._ropes[number],
        )

    def _attend_prompt(
        self, layer: Layer, qkv: torch.Tensor, cache: torch.Tensor, start: int
    ) -> torch.Tensor:
        """(tokens, heads * head_dim) of tokens that stand at `start`..., causal.

        Args:
            layer: whose window it is.
            qkv: its queries are read.
            cache: (2, kv_heads, max_length, head_dim), the row, in which the tokens are already.
            start: how many positions are before them.
        """
        decoder = self._decoder
        count = len(qkv)
        query = qkv.view(count, -1, decoder.head_dim)[:, : decoder.heads]
        keys, values = cache[:, :, : start + count]
        if decoder.attention_softcap is None and decoder.dtype is not torch.float32:
            # The library's flash attention: heads share keys, the last query sees the last key.
            attended: torch.Tensor = torch.ops.aten._flash_attention_forward(  # noqa: SLF001 - no public name
                *(x.unsqueeze(0) for x in (query, keys.transpose(0, 1), values.transpose(0, 1))),
                *(None, None, count, start + count, 0.0, True, False),
                scale=decoder.attention_scale,
                window_size_left=-1 if layer.window is None else layer.window - 1,
                window_size_right=0,
            )[0]
            return attended.reshape(count, -1)
        parts = [
            self._score_prompt(layer, query[at : at + _SCORED_QUERIES], keys, values, start + at)
            for at in range(0, count, _SCORED_QUERIES)
        ]
        return torch.cat(parts)

    def _score_prompt(
        self,
        layer: Layer,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        start: int,
    ) -> torch.Tensor:
        """As `_attend_prompt`, of a few queries (tokens, heads, head_dim), score by score."""
        decoder = self._decoder
        count, end = len(query), start + len(query)
        at = torch.arange(start, end, device=query.device).unsqueeze(1)
        position = torch.arange(end, device=query.device)
        seen = position <= at
        if layer.window is not None:
            seen &= position > at - layer.window
        group = decoder.heads // decoder.kv_heads
        query = query.transpose(0, 1)
        keys = keys[:, :end].repeat_interleave(group, dim=0)
        values = values[:, :end].repeat_interleave(group, dim=0)
        if decoder.attention_softcap is None:
            attended = scaled_dot_product_attention(
                query, keys, values, attn_mask=seen, scale=decoder.attention_scale
            )
        else:
            cap = decoder.attention_softcap
            scores = (query @ keys.transpose(1, 2)).float() * decoder.attention_scale
            scores = (torch.tanh(scores / cap) * cap).masked_fill(~seen, -torch.inf)
            attended = scores.softmax(dim=-1).to(values.dtype) @ values
        return attended.transpose(0, 1).reshape(count, -1)


def _on_device(rope: Rope | None, device: torch.device) -> Rope | None:
    if rope is None:
        return None
    return replace(rope, frequencies=rope.frequencies.to(device, torch.float32).contiguous())


def _multiply(
    inputs: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    if bias is None:
        torch.mm(inputs, matrix.t(), out=out)
    else:
        torch.addmm(bias, inputs, matrix.t(), out=out)


def _product(inputs: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.nn.functional.linear(inputs, matrix, bias)
