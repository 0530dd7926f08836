"""How fast decoders of known shapes run on this machine's CUDA device, below any server.

    PYTHONPATH=inference python3 -m bench.gpu [--shape 8B] [--streams 1 16 64 128]

Weights are random: what they are does not change how long a step takes. Prints a table in
Markdown: tokens a second of decode steps by batch size, the time of a prompt, and what making
ready took. Knows the runner; knows nothing of HTTP (`bench.serving` measures that).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from llm_inference.engine.cuda_runner import CudaRunner
from llm_inference.engine.interface import SamplingParams
from llm_inference.engine.step import Draw
from llm_inference.engine.torch_decoder import Decoder, Layer, Rope

GREEDY = SamplingParams(temperature=0.0)
PROMPT = 512
STEPS = 64


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder; field names are those of a config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int = 128_256


SHAPES = {
    "8B": Shape(4096, 14_336, 32, 32, 8, 128),
    "1B": Shape(2048, 8192, 16, 32, 8, 64),
}


def random_decoder(shape: Shape) -> Decoder:
    """A Llama of this shape with random bfloat16 weights on the device."""

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.empty((rows, columns), dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)

    hidden, inner, dim = shape.hidden_size, shape.intermediate_size, shape.head_dim
    heads, kv_heads = shape.num_attention_heads, shape.num_key_value_heads
    ones = torch.ones(hidden, device="cuda")
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    rope = Rope(frequencies=1.0 / 500_000.0**exponents)
    layers = tuple(
        Layer(
            attention_norm=ones,
            qkv=matrix((heads + 2 * kv_heads) * dim, hidden),
            output=matrix(hidden, heads * dim),
            mlp_norm=ones,
            gate_up=matrix(2 * inner, hidden),
            down=matrix(hidden, inner),
            rope=rope,
        )
        for _ in range(shape.num_hidden_layers)
    )
    return Decoder(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        embedding=matrix(shape.vocab_size, hidden),
        layers=layers,
        norm=ones,
        head=matrix(shape.vocab_size, hidden),
        norm_eps=1e-5,
        attention_scale=dim**-0.5,
    )


def bytes_read(decoder: Decoder) -> int:
    """What a step of one row reads of the weights."""
    matrices = [decoder.head]
    for layer in decoder.layers:
        matrices += [layer.qkv, layer.output, layer.gate_up, layer.down]
    return sum(matrix.numel() * matrix.itemsize for matrix in matrices)


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes, the device's part included."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def draws(count: int) -> list[Draw]:
    """As many plain choices."""
    return [Draw(sampling=GREEDY, seed=0) for _ in range(count)]


def prefill_seconds(runner: CudaRunner, tokens: int) -> float:
    """Median seconds until the first token of a prompt of `tokens`."""
    prompt = torch.randint(0, 30_000, (tokens,)).tolist()
    runner.prefill(0, prompt, 0, draws(1)[0])
    times = [seconds(lambda: runner.prefill(0, prompt, 0, draws(1)[0])) for _ in range(9)]
    return sorted(times)[len(times) // 2]


def decode_seconds(runner: CudaRunner, streams: int, position: int = PROMPT) -> float:
    """Seconds of a step, the mean of many that follow each other as a scheduler's do."""
    asked = draws(streams)
    tokens = [1] * streams

    def run(steps: int) -> None:
        nonlocal tokens
        for step in range(steps):
            choices = runner.decode(0, tokens, [position + step] * streams, asked)
            tokens = [choice.token if choice else 0 for choice in choices]

    run(3)
    return seconds(lambda: run(STEPS)) / STEPS


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8B")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64, 128])
    chosen = parser.parse_args()
    properties = torch.cuda.get_device_properties(0)
    print(f"{properties.name}, torch {torch.__version__}, CUDA {torch.version.cuda}\n")
    decoder = random_decoder(SHAPES[chosen.shape])
    rows = max(chosen.streams)
    made: list[CudaRunner] = []
    ready = seconds(
        lambda: made.append(CudaRunner(decoder, rows=rows, max_length=PROMPT + 2 * STEPS))
    )
    runner = made[0]
    warm = seconds(lambda: runner.warm([1]))
    filled = torch.randint(0, 30_000, (PROMPT,)).tolist()
    for row in range(rows):
        runner.prefill(row, filled, 0, None)
    gigabytes = bytes_read(decoder) / 1e9
    print(f"{chosen.shape} Llama, bfloat16, {gigabytes:.2f} GB of weights read a step")
    print(f"kernels and cache ready in {ready:.2f} s, warm in {warm:.2f} s")
    print(f"a prompt of {PROMPT} tokens: {1000 * prefill_seconds(runner, PROMPT):.1f} ms\n")
    print("| streams | ms a step | tokens/s | weights read, GB/s |")
    print("|---|---|---|---|")
    for streams in chosen.streams:
        step = decode_seconds(runner, streams)
        print(
            f"| {streams} | {1000 * step:.2f} | {streams / step:,.0f} | {gigabytes / step:,.0f} |"
        )


if __name__ == "__main__":
    main()
