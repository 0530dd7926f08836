"""The engine for encoder models: texts to vectors, the texts of waiting requests in one batch.

Knows the encoder, and the pooling that its sentence-transformers files ask for.
"""

import asyncio
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from llm_inference.engine.codec import HuggingFaceCodec
from llm_inference.engine.directory import ModelLoadError
from llm_inference.engine.interface import (
    Capacity,
    EmbeddingEngine,
    Embeddings,
    EngineClosedError,
    EngineError,
    EngineFullError,
    Load,
    Observer,
    TextInput,
)
from llm_inference.engine.pace import Rate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


PoolingMode = Literal["mean", "cls", "max", "last"]
# As sentence-transformers names them, in older files and in newer ones.
_MODES: dict[str, PoolingMode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "lasttoken": "last",
}


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How token states become one vector.

    Attributes:
        mode: how; `last` is the state of the last token.
        normalize: whether vectors are made 1 long.
        max_length: the longest text in tokens that the model was trained for, None if not said.
        shorter: lengths that the first numbers of a vector may stand for it with; None for any.
    """

    mode: PoolingMode = "mean"
    normalize: bool = False
    max_length: int | None = None
    shorter: tuple[int, ...] | None = ()


def read_pooling(directory: Path) -> Pooling:
    """What modules.json and the files it names say; mean pooling where there is none.

    Raises:
        ModelLoadError: it asks for a module or mode that is not served.
    """
    modules_file = directory / "modules.json"
    shorter = _shorter(directory)
    if not modules_file.is_file():
        return Pooling(shorter=shorter)
    kinds = {}
    for module in json.loads(modules_file.read_text(encoding="utf-8")):
        kinds[module["type"].rpartition(".")[2]] = directory / module["path"]
    if unknown := sorted(kinds.keys() - {"Transformer", "Pooling", "Normalize"}):
        raise ModelLoadError(
            f"modules.json asks for a {unknown[0]} module, which this server does not have"
        )
    return Pooling(
        mode=_pooling_mode(kinds["Pooling"]) if "Pooling" in kinds else "mean",
        normalize="Normalize" in kinds,
        max_length=_sentence_length(kinds.get("Transformer", directory)),
        shorter=shorter,
    )


def _pooling_mode(directory: Path) -> PoolingMode:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    wanted = {name for name, value in config.items() if name.startswith("pooling_mode_") and value}
    wanted |= {config["pooling_mode"]} if config.get("pooling_mode") else set()
    modes = {_MODES.get(name) for name in wanted}
    if len(modes) != 1 or (mode := modes.pop()) is None:
        raise ModelLoadError(
            f"the model asks for the pooling {sorted(wanted)}, which is not served"
        )
    return mode


def _shorter(directory: Path) -> tuple[int, ...] | None:
    """The lengths that config.json of a Matryoshka model names, None for any."""
    file = directory / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if lengths := config.get("matryoshka_dimensions"):
        return tuple(sorted(lengths))
    return None if config.get("is_matryoshka") else ()


def _sentence_length(directory: Path) -> int | None:
    file = directory / "sentence_bert_config.json"
    if not file.is_file():
        return None
    length: int | None = json.loads(file.read_text(encoding="utf-8")).get("max_seq_length")
    return length


@torch.inference_mode()
def encode(
    model: "PreTrainedModel", pooling: Pooling, batch: Sequence[Sequence[int]], pad: int
) -> torch.Tensor:
    """Vectors, float32 (texts, dimensions), of texts given as token ids."""
    width = max(len(ids) for ids in batch)
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in batch], device=model.device)
    lengths = torch.tensor([len(row) for row in batch], device=model.device)
    mask = torch.arange(width, device=model.device) < lengths.unsqueeze(1)
    states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
    if pooling.mode == "cls":
        vectors = states[:, 0]
    elif pooling.mode == "last":
        vectors = states[torch.arange(len(batch), device=states.device), lengths - 1]
    elif pooling.mode == "max":
        vectors = states.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(dim=1)
    else:
        vectors = (states * mask.unsqueeze(-1)).sum(dim=1) / lengths.unsqueeze(1)
    return torch.nn.functional.normalize(vectors, dim=-1) if pooling.normalize else vectors


@dataclass(eq=False)
class _Job:
    """One text of a request: its token ids and where its vector goes."""

    ids: list[int]
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[list[float]]"


class PoolingEngine(EmbeddingEngine):
    """Serves embeddings with one encoder, in one thread; see `EmbeddingEngine`.

    Args:
        model: an AutoModel encoder in eval mode.
        codec: its tokenizer.
        pooling: how token states become a vector.
        pad: token id that fills short texts up.
        capacity: `max_length` tokens of a text, `max_concurrency` texts in a batch.
        observer: hears of steps.
    """

    def __init__(
        self,
        *,
        model: "PreTrainedModel",
        codec: HuggingFaceCodec,
        pooling: Pooling,
        pad: int,
        capacity: Capacity,
        observer: Observer,
    ) -> None:
        self.capacity = capacity
        self._model = model
        self._codec = codec
        self._pooling = pooling
        self._pad = pad
        self._observer = observer
        self.dimensions = _dimensions(pooling, model.config.hidden_size)
        self._step_since: float | None = None
        self._wake = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._running = 0
        self._rate = Rate(capacity.max_concurrency)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False once no request can be served any more."""
        return self._thread.is_alive()

    @property
    def stalled_seconds(self) -> float:
        """How long the model has been at the batch it is at; 0 between batches."""
        since = self._step_since
        return 0.0 if since is None else time.monotonic() - since

    def load(self) -> Load:
        """Texts held now; an encoder keeps no cache."""
        return Load(running=self._running, waiting=len(self._waiting), cache_usage=0.0)

    def count_tokens(self, texts: Sequence[TextInput]) -> list[int]:
        """Tokens of each text, special tokens included."""
        return [len(ids) for ids in self._encode(texts)]

    def _encode(self, texts: Sequence[TextInput]) -> list[list[int]]:
        return [self._codec.encode(text) if isinstance(text, str) else list(text) for text in texts]

    async def embed(self, texts: Sequence[TextInput]) -> Embeddings:
        """One vector for each text; texts of other requests may share the batch."""
        encoded = await asyncio.to_thread(self._encode, texts)
        if any(len(ids) > self.capacity.max_length for ids in encoded):
            raise ValueError("a text does not fit the model")
        loop = asyncio.get_running_loop()
        jobs = [_Job(ids, loop, loop.create_future()) for ids in encoded]
        with self._wake:
            if self._closing or not self.alive:
                raise EngineClosedError("The engine serves no more requests.")
            excess = len(self._waiting) + len(jobs) - self.capacity.max_queue
            # Nobody waits: a request of more texts than may wait would else never be served.
            if self._waiting and excess > 0:
                raise EngineFullError(self._retry_after(excess))
            self._waiting.extend(jobs)
            self._wake.notify()
        try:
            vectors = [await job.future for job in jobs]
        finally:
            self._drop(jobs)
        return Embeddings(vectors=vectors, tokens=sum(map(len, encoded)))

    async def close(self) -> None:
        """Finish the batch that runs and stop."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def _retry_after(self, excess: int) -> int:
        """Whole seconds until so many texts, or all, wait no longer: a batch takes many at once."""
        leave = min(excess, len(self._waiting))
        ended_first = self._running + max(0, leave - self.capacity.max_concurrency)
        return self._rate.retry_after(ended_first)

    def _drop(self, jobs: Sequence[_Job]) -> None:
        with self._wake:
            for job in jobs:
                job.future.cancel()
                if job in self._waiting:
                    self._waiting.remove(job)

    def _run(self) -> None:
        while batch := self._next_batch():
            self._step_since = began = time.monotonic()
            self._serve(batch)
            self._step_since = None
            with self._wake:
                self._running = 0
                self._rate.note((time.monotonic() - began) / len(batch))
        with self._wake:
            waiting, self._closing = list(self._waiting), True
            self._waiting.clear()
        for job in waiting:
            self._settle(job, EngineClosedError("The engine stopped."))

    def _serve(self, batch: Sequence[_Job]) -> None:
        """Encode a batch; if that fails, each text alone, so that one cannot harm the others."""
        try:
            vectors = encode(self._model, self._pooling, [job.ids for job in batch], self._pad)
            results: list[list[float]] = vectors.tolist()
        except Exception as error:
            logger.exception("encoding %d texts failed", len(batch))
            if len(batch) > 1:
                for job in batch:
                    self._serve([job])
            else:
                reason = f"The model failed on this text ({type(error).__name__})."
                self._settle(batch[0], EngineError(reason))
            return
        tokens = sum(len(job.ids) for job in batch)
        self._observer.step("embed", sequences=len(batch), tokens=tokens)
        for job, vector in zip(batch, results, strict=True):
            self._settle(job, vector)

    def _next_batch(self) -> list[_Job]:
        """The next texts to encode, empty when the engine is to stop."""
        with self._wake:
            while not (self._closing or self._waiting):
                self._wake.wait()
            if self._closing:
                return []
            count = min(len(self._waiting), self.capacity.max_concurrency)
            self._running = count
            return [self._waiting.popleft() for _ in range(count)]

    @staticmethod
    def _settle(job: _Job, result: list[float] | Exception) -> None:
        def settle() -> None:
            if job.future.done():
                return
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)

        try:
            job.loop.call_soon_threadsafe(settle)
        except RuntimeError:
            logger.debug("an event loop is closed; its vectors are dropped")


def _dimensions(pooling: Pooling, own: int) -> Sequence[int]:
    """The lengths that vectors may be cut to, rising to their own."""
    if pooling.shorter is None:
        return range(1, own + 1)
    return [*(length for length in pooling.shorter if length < own), own]
