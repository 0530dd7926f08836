"""Tokens per second of the engine's runners alone, without scheduler and HTTP, in turn.

    python -m bench.engine

The native library, by each set of instructions that this processor has, beside transformers' model,
over the same kind of cache, in one process: first a prompt is read, then rows of it are continued
together. Prints tables in Markdown: medians with what the memory and the processor gave for it, and
the least processor time of all threads, which says more where others use the machine.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "inference"))
# As the server sets it: torch's threads would spin where they share their processors.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402

from bench.serving.machine import describe  # noqa: E402
from dev.stand_ins.cache import models  # noqa: E402
from llm_inference.engine import models as loaded  # noqa: E402
from llm_inference.engine import native  # noqa: E402
from llm_inference.engine.arrays import ITEM_BYTES, Array  # noqa: E402
from llm_inference.engine.cache import RowCache  # noqa: E402
from llm_inference.engine.cpu_runner import CpuRunner  # noqa: E402
from llm_inference.engine.decoder import Decoder  # noqa: E402
from llm_inference.engine.directory import inspect  # noqa: E402
from llm_inference.engine.interface import SamplingParams  # noqa: E402
from llm_inference.engine.linear import widen_linears  # noqa: E402
from llm_inference.engine.runner import CausalRunner  # noqa: E402
from llm_inference.engine.step import Draw, Runner  # noqa: E402

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BATCHES = (1, 4, 16)
PROMPT = 512
STEPS = 16
MAX_LENGTH = 1024
_GIGA = 1e9


Taken = list[tuple[float, float]]
"""Seconds, and seconds of processor, of each step."""


def native_sets() -> list[str]:
    """The sets of instructions that the library can use here, the best one first."""
    asked = os.environ.get("ATEN_CPU_CAPABILITY")
    found = dict.fromkeys(each for each in map(_instructions, (asked, "avx2")) if each)
    return list(found)


def _instructions(wanted: str | None) -> str | None:
    """Have decoders opened from now on use a set; which one they do use."""
    if wanted is not None:
        os.environ["ATEN_CPU_CAPABILITY"] = wanted
    return native.instructions()


def read(directory: Path, dtype: str) -> Decoder[Array]:
    """The decoder of a model directory, its matrices in a type."""
    decoder = loaded.load_decoder(inspect(directory), dtype=dtype)
    if decoder is None or not native.computes_in(dtype):
        raise SystemExit("the native library does not run this model on this machine")
    return native.converted(decoder, dtype)


def transformers(directory: Path, dtype: torch.dtype) -> CausalRunner:
    """The same model by transformers."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - slow, and not always asked for

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    widen_linears(model)
    config = model.config
    shape = (config.num_key_value_heads, config.head_dim, config.head_dim)
    cache = RowCache(
        shapes=[shape] * config.num_hidden_layers,
        rows=max(BATCHES),
        max_length=MAX_LENGTH,
        dtype=dtype,
        device=model.device,
    )
    return CausalRunner(model=model, cache=cache, windows={"full_attention": None})


def prefill(runner: Runner, row: int, length: int) -> Taken:
    """What it takes to read a prompt and to choose the token after it."""
    prompt = [(7919 * i + row) % 40000 for i in range(length)]
    began = _now()
    for start in range(0, length, runner.prefill_chunk):
        piece = prompt[start : start + runner.prefill_chunk]
        last = start + len(piece) == length
        runner.prefill(row, piece, start, _greedy() if last else None)
    return [_since(began)]


def decode(runner: Runner, rows: int, context: int) -> Taken:
    """What steps of so many rows take, at this length."""
    draws = [_greedy() for _ in range(rows)]
    tokens = list(range(100, 100 + rows))
    taken = []
    for step in range(STEPS):
        began = _now()
        chosen = runner.decode(0, tokens, [context + step] * rows, draws)
        tokens = [choice.token if choice else 0 for choice in chosen]
        taken.append(_since(began))
    return taken


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(began: tuple[float, float]) -> tuple[float, float]:
    wall, processor = _now()
    return wall - began[0], processor - began[1]


def _greedy() -> Draw:
    return Draw(sampling=SamplingParams(temperature=0), seed=0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("--directory", type=Path, default=models() / MODEL)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--context", type=int, default=64, help="tokens before the decoded ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="the native library only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    on = describe()
    decoder = read(arguments.directory, arguments.dtype)
    runners: dict[str, Runner] = {}
    for each in native_sets():
        _instructions(each)
        runners[each] = CpuRunner(
            decoder, rows=max(BATCHES), max_length=MAX_LENGTH, threads=arguments.threads
        )
    if not arguments.alone:
        dtype = getattr(torch, arguments.dtype)
        runners["transformers"] = transformers(arguments.directory, dtype)
    measures: dict[str, Callable[[Runner], Taken]] = {
        f"{rows} rows": lambda runner, rows=rows: decode(runner, rows, arguments.context)
        for rows in BATCHES
    }
    measures["prompt"] = lambda runner: prefill(runner, 0, PROMPT)
    taken: dict[tuple[str, str], Taken] = {}
    for runner in runners.values():  # fills the rows, and warms
        for row in range(max(BATCHES)):
            prefill(runner, row, arguments.context)
    for _ in range(arguments.rounds):
        for what, measure in measures.items():
            for name, runner in runners.items():
                taken.setdefault((what, name), []).extend(measure(runner))
    print(
        f"{arguments.directory.name}, {arguments.dtype}, {arguments.threads} threads, "
        f"{on['cpu']}, load {on['load']}; medians of {arguments.rounds} rounds in turn, decoding "
        f"at {arguments.context} tokens\n"
    )
    _print_table(decoder, list(runners), taken)


def _print_table(
    decoder: Decoder[Array], names: list[str], taken: dict[tuple[str, str], Taken]
) -> None:
    size = ITEM_BYTES[decoder.head.dtype]
    layers = sum(
        math.prod(matrix.shape)
        for layer in decoder.layers
        for matrix in (layer.qkv, layer.output, layer.gate_up, layer.down)
    )
    weights = layers + math.prod(decoder.head.shape)
    print("| | " + " | ".join(f"{name} | | | " for name in names) + "|")
    print("|---|" + "---:|---:|---:|---:|" * len(names))
    for rows in BATCHES:
        cells = []
        for name in names:
            seconds, processor = _summary(taken[f"{rows} rows", name])
            cells += [
                f"{rows / seconds:.0f} tok/s",
                f"{weights * size / seconds / _GIGA:.1f} GB/s",
                f"{2 * weights * rows / seconds / _GIGA:.0f} GFLOP/s",
                f"{processor * 1000:.1f} ms",
            ]
        print(f"| {rows} rows | " + " | ".join(cells) + " |")
    cells = []
    for name in names:
        seconds, processor = _summary(taken["prompt", name])
        flops = 2 * layers * PROMPT / seconds / _GIGA
        cells += [f"{seconds * 1000:.0f} ms", f"{PROMPT / seconds:.0f} tok/s"]
        cells += [f"{flops:.0f} GFLOP/s", f"{processor * 1000:.0f} ms"]
    print(f"| prompt of {PROMPT} | " + " | ".join(cells) + " |")


def _summary(taken: Taken) -> tuple[float, float]:
    """The median of seconds, and the least processor time."""
    return statistics.median(wall for wall, _ in taken), min(processor for _, processor in taken)


if __name__ == "__main__":
    main()
