"""Settings of the operator, from environment variables that begin with LLM_OPERATOR_.

Knows every setting, its default and its bounds. Does not know who reads them.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from llm_operator.fields import LocalReference, PullPolicy
from llm_operator.profiles import HardwareProfile

PREFIX = "LLM_OPERATOR_"

_NAME = "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"


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


def _json(value: object) -> object:
    """A variable that holds a JSON object as that object; nothing if it is empty."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value or "{}")
    except ValueError as error:
        raise ValueError(f"this is not JSON: {error}") from None


def _nothing_if_empty(value: object) -> object:
    return None if value == "" else value


def _profiles(value: object) -> object:
    """Profiles as they are written; an error names the profile and its field."""
    if not isinstance(value, Mapping):
        return value
    return {str(name): HardwareProfile.read(str(name), body) for name, body in value.items()}


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
    roll_on_config_change: bool = True
    """Whether to read the Secrets and ConfigMaps of pods, to replace the pods when they change."""
    hardware_profiles: Annotated[
        dict[str, HardwareProfile], BeforeValidator(_profiles), BeforeValidator(_json)
    ] = {}
    """Named profiles that LLMDeployments may choose: a JSON object, name to profile."""
    standalone: bool = False
    """Act without asking: nobody else runs. Without it operators choose a leader by a Lease."""
    lease_name: Annotated[str, Field(pattern=_NAME, max_length=253)] = "llm-operator"
    """Name of the Lease."""
    namespace: Annotated[str, Field(pattern=f"^$|{_NAME}", max_length=63)] = ""
    """The operator's own namespace, where the Lease is."""
    pod_name: str = ""
    """Name of the operator's pod. A restarted process of the same pod leads again at once."""
    resync_seconds: Annotated[float, Field(ge=1)] = 300
    """Time between two reconciles of an object to which nothing happened."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log messages to write."""
    log_format: Literal["text", "json"] = "text"
    """Form of log messages."""
    health_port: Annotated[int, Field(ge=1, le=65535)] = 8080
    """Port of /healthz, /readyz and /metrics."""

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

    def lease_namespace(self) -> str:
        """Where the Lease is.

        Raises:
            SettingsError: that is not said.
        """
        if not self.namespace:
            raise SettingsError(
                f"{PREFIX}NAMESPACE is not set: name the operator's own namespace, where the Lease"
                f" is kept, or set {PREFIX}STANDALONE=true if no other operator runs"
            )
        return self.namespace


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    field, *inside = [str(part) for part in first["loc"]]
    message = first["msg"].removeprefix("Value error, ")
    if field == "runtime_image" and inside:
        field, inside = f"{field}_{inside[0]}", inside[1:]
    name = PREFIX + field.upper()
    if first["type"] == "extra_forbidden" and not inside:
        return f"{name} is not a setting of the operator: remove it or mend its name"
    if inside:
        return f"{name}: {'.'.join(inside)}: {message}"
    if isinstance(first["input"], dict | list):  # too much to repeat
        return f"{name}: {message}"
    return f"{name}={json.dumps(first['input'], default=str)}: {message}"
