"""Answers of GET /v1/models and /info."""

from typing import Any, Literal

from pydantic import BaseModel


class ModelCard(BaseModel):
    """The model that is served; `max_model_len` counts prompt and output tokens."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    max_model_len: int


class ModelList(BaseModel):
    """Answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Info(BaseModel):
    """What is served, how, and by what: the answer of GET /info.

    Attributes:
        model: id that clients give.
        root: the model itself, its name at the hub.
        revision: its commit, if known.
        task: generate or embed.
        device: what it runs on; `dtype` is the type that is computed in.
        quantization: how the weights are held.
        max_length: tokens (prompt + output) of a sequence.
        max_concurrency: sequences in a batch.
        max_queue: sequences waiting before requests are refused.
        versions: of this server and its libraries.
        features: what the model can be asked for here.
    """

    model: str
    root: str
    revision: str | None
    task: Literal["generate", "embed"]
    device: dict[str, Any] | None
    quantization: str
    max_length: int
    max_concurrency: int
    max_queue: int
    vocabulary: int
    versions: dict[str, str]
    features: dict[str, bool]
