"""Settings of the operator, from environment variables that begin with LLM_OPERATOR_.

Knows every setting, its default and its bounds. Does not know who reads them.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from llm_operator.fields import LocalReference, PullPolicy

PREFIX = "LLM_OPERATOR_"


class SettingsError(ValueError):
    """A setting is wrong. The message is one sentence for the person who starts the operator."""


def _split(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _words(value: object) -> object:
    """A comma-separated variable as a tuple of words."""
    return _split(value) if isinstance(value, str) else value


def _references(value: object) -> object:
    """Names separated by commas as references to objects."""
    return tuple({"name": word} for word in _split(value)) if isinstance(value, str) else value


def _nothing_if_empty(value: object) -> object:
    return None if value == "" else value


OptionalText = Annotated[str | None, BeforeValidator(_nothing_if_empty)]


class RuntimeImage(BaseModel):
    """The inference image of LLMDeployments that name none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repository: OptionalText = None
    tag: OptionalText = None
    cpu: OptionalText = None
    gpu: OptionalText = None
    pull_policy: Annotated[PullPolicy | None, BeforeValidator(_nothing_if_empty)] = None
    pull_secrets: Annotated[tuple[LocalReference, ...], BeforeValidator(_references)] = ()


class Settings(BaseModel):
    """What the person who installs the operator decides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime_image: RuntimeImage = RuntimeImage()
    """Default inference image (RUNTIME_IMAGE_REPOSITORY, _TAG, _CPU, _GPU, _PULL_POLICY,
    _PULL_SECRETS)."""
    watch_namespaces: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    """Namespaces to serve, separated by commas. All if empty."""
    watch_nodes: bool = True
    """Whether target auto may look at nodes. Without it auto means cpu unless gpu is set."""
    resync_seconds: Annotated[float, Field(ge=1)] = 300
    """Time between two reconciles of an object to which nothing happened."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log messages to write."""
    log_format: Literal["text", "json"] = "text"
    """Form of log messages."""
    health_port: Annotated[int, Field(ge=1, le=65535)] = 8080
    """Port of /healthz."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """The settings in `environ`.

        Raises:
            SettingsError: a variable is unknown or its value is not accepted.
        """
        values: dict[str, Any] = {}
        image: dict[str, Any] = {}
        for name, value in environ.items():
            if not name.startswith(PREFIX):
                continue
            field = name.removeprefix(PREFIX).lower()
            if field.startswith("runtime_image_"):
                image[field.removeprefix("runtime_image_")] = value
            else:
                values[field] = value
        if image:
            values["runtime_image"] = image
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
    if first["type"] == "extra_forbidden":
        return f"{name} is not a setting of the operator: remove it or mend its name"
    return f"{name}={json.dumps(first['input'], default=str)}: {first['msg']}"
