"""Settings of the server: environment variables with the prefix LLM_.

Knows names, types, bounds and defaults, and turns a bad value into one sentence. Does not know
what the settings are used for.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "LLM_"
# Kubernetes injects these for every Service of the namespace whose name starts with "llm".
_SERVICE_LINK = re.compile(r"^LLM_(?:.*_)?(?:SERVICE_HOST|SERVICE_PORT(?:_.*)?|PORT(?:_\d+_.*)?)$")

LogLevel = Literal["debug", "info", "warning", "error"]


class SettingsError(ValueError):
    """A setting cannot be used; the message is one sentence that names it."""


class Settings(BaseSettings):
    """What the environment asks of this server."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True)

    model_id: str | None = Field(
        default=None,
        description="model that must be served; a manifest that names another one is refused",
    )
    model_revision: str | None = Field(
        default=None,
        description="revision that must be served; a manifest that names another one is refused",
    )
    model_source: Literal["directory", "hub"] = Field(
        default="directory",
        description="where the model comes from: LLM_MODEL_DIR, or the hub at start",
    )
    model_dir: Path = Field(
        default=Path("/model"), description="HuggingFace model directory with safetensors weights"
    )
    hub_cache_dir: Path = Field(
        default=Path("/cache"), description="folder that keeps what is downloaded from the hub"
    )
    served_name: str | None = Field(
        default=None, description="name clients give as `model`; the model id by default"
    )
    task: Literal["auto", "generate", "embed"] = Field(
        default="auto", description="generate text, compute embeddings, or what the model is for"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="type of weights and cache; the checkpoint's own by default"
    )
    quantization: Literal["none", "int8"] = Field(
        default="none", description="int8 holds the weights of linear layers as 8-bit integers"
    )
    max_length: int | None = Field(
        default=None,
        ge=16,
        le=1_048_576,
        description="prompt + output tokens of one sequence; the model's own, bounded by memory",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where the model runs; cuda if there is one"
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="threads that compute; what the container may use"
    )
    host: str = Field(default="0.0.0.0", description="address to listen on")
    port: int = Field(default=8080, ge=0, le=65535, description="port to listen on")
    max_concurrency: int = Field(
        default=16, ge=1, le=1024, description="sequences decoded in one batch"
    )
    max_queue: int = Field(
        default=64, ge=0, le=100_000, description="sequences waiting before requests get 429"
    )
    max_queue_tokens: int | None = Field(
        default=None,
        ge=1,
        le=1 << 31,
        description="tokens, prompts and outputs together, that may wait; a quarter of "
        "LLM_MAX_QUEUE times LLM_MAX_LENGTH",
    )
    request_timeout_seconds: float = Field(
        default=300, gt=0, le=86_400, description="longest life of one request"
    )
    step_timeout_seconds: float = Field(
        default=120,
        gt=0,
        le=86_400,
        description="one forward pass that takes longer makes /livez fail",
    )
    max_body_bytes: int = Field(
        default=8 << 20, ge=1024, le=1 << 30, description="largest body of a request"
    )
    receive_timeout_seconds: float = Field(
        default=60, gt=0, le=3600, description="time a client has to send a request"
    )
    stream_comment_seconds: float = Field(
        default=15, gt=0, le=3600, description="silence in a stream before a comment fills it"
    )
    drain_seconds: float = Field(
        default=30, ge=0, le=3600, description="time running requests have after SIGTERM"
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="one API key a line; requests to the API must then carry one of them",
    )
    log_level: LogLevel = Field(default="info", description="least severe log line written")
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto", description="form of log lines: text on a terminal and JSON elsewhere"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.model_source == "hub" and self.model_id is None:
            raise ValueError("LLM_MODEL_SOURCE=hub needs LLM_MODEL_ID")
        if self.model_source != "hub" and "hub_cache_dir" in self.model_fields_set:
            raise ValueError("LLM_HUB_CACHE_DIR needs LLM_MODEL_SOURCE=hub")
        return self

    @model_validator(mode="after")
    def _no_blank_names(self) -> Self:
        for name in ("model_id", "model_revision", "served_name"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise ValueError(f"{PREFIX}{name.upper()} is blank")
        return self


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check the settings.

    Raises:
        SettingsError: a value is malformed or a LLM_ variable is not one of ours.
    """
    environ = os.environ if environ is None else environ
    _refuse_unknown(environ)
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from None


def traces_wanted(environ: Mapping[str, str] | None = None) -> bool:
    """Whether OpenTelemetry's own variables say where traces are to go.

    Raises:
        SettingsError: they name a protocol that is not spoken.
    """
    environ = os.environ if environ is None else environ
    kind = "OTEL_EXPORTER_OTLP_"
    if not (environ.get(f"{kind}TRACES_ENDPOINT") or environ.get(f"{kind}ENDPOINT")):
        return False
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return False
    for name in (f"{kind}TRACES_PROTOCOL", f"{kind}PROTOCOL"):
        if protocol := environ.get(name):
            if protocol != "http/protobuf":
                raise SettingsError(f"{name}={protocol!r}: traces are sent as http/protobuf only")
            break
    return True


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and not _SERVICE_LINK.match(name):
            raise SettingsError(f"{name} is not a setting of this server")


def _sentence(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        name = "".join(f"{PREFIX}{part}".upper() for part in item["loc"][:1])
        reason = item["msg"].removeprefix("Value error, ")
        reason = reason[:1].lower() + reason[1:] if name else reason
        parts.append(f"{name}={item['input']!r}: {reason}" if name else reason)
    return "; ".join(parts)
