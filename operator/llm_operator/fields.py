"""What the API's models are made of: a frozen base model, bounded types and CEL rules.

Knows Kubernetes' syntax for names, quantities and images. Does not know what they are used for.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel

from llm_operator import quantities

PullPolicy = Literal["Always", "IfNotPresent", "Never"]

SUBDOMAIN = r"[a-z0-9]+((-+|\.)[a-z0-9]+)*"
_NAME_PART = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
QUALIFIED_NAME = f"({SUBDOMAIN}/)?{_NAME_PART}"
_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_HOST = r"[A-Za-z0-9]+((-+|\.)[A-Za-z0-9]+)*"
_REPOSITORY_PART = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = rf"({_HOST}(:[0-9]{{1,5}})?/)?{_REPOSITORY_PART}(/{_REPOSITORY_PART})*"
_TAG = r"[A-Za-z0-9_][-A-Za-z0-9._]{0,127}"
_DIGEST = r"[a-z0-9]+([-+._][a-z0-9]+)*:[0-9a-fA-F]{32,}"
_CONFIG_KEY = r"^\.?[-_A-Za-z0-9][-._A-Za-z0-9]*$"
_SHARE = r"^(100|[1-9]?[0-9])%$"

ObjectName = Annotated[str, StringConstraints(max_length=253, pattern=rf"^{SUBDOMAIN}$")]
Repository = Annotated[str, StringConstraints(max_length=384, pattern=rf"^{_REPOSITORY}$")]
"""Name of an image without tag and digest."""
ImageReference = Annotated[
    str,
    StringConstraints(max_length=512, pattern=rf"^{_REPOSITORY}(:{_TAG})?(@{_DIGEST})?$"),
]
ResourceName = Annotated[str, StringConstraints(max_length=244, pattern=rf"^{QUALIFIED_NAME}$")]
ConfigKey = Annotated[str, StringConstraints(max_length=253, pattern=_CONFIG_KEY)]
"""Key of a Secret or ConfigMap."""
LabelKey = Annotated[str, StringConstraints(max_length=253, pattern=rf"^{QUALIFIED_NAME}$")]
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=rf"^({_NAME_PART})?$")]
AnnotationValue = Annotated[str, StringConstraints(max_length=4096)]
Url = Annotated[
    str,
    StringConstraints(max_length=512, pattern=rf"^https?://{_HOST}(:{_PORT})?(/[!-\x22$->@-~]*)?$"),
]
"""Address of a service, without user, query or fragment."""

# The schema of a map says nothing of its keys.
KEYS = (
    "self.all(key, !format.qualifiedName().validate(key).hasValue())",
    "a key is a name such as example.com/team",
)


def _as_text(quantity: object) -> object:
    """A fraction as text. The API server lets none pass, but the chart's values may hold some."""
    return str(quantity) if isinstance(quantity, float | bool) else quantity


def _checked(quantity: int | str) -> int | str:
    """`quantity` as it is; a ValueError if it is none."""
    quantities.parse(quantity)
    return quantity


Quantity = Annotated[
    int | str,
    BeforeValidator(_as_text),
    AfterValidator(_checked),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "minimum": 0,
            "pattern": quantities.PATTERN,
            "maxLength": 32,
        }
    ),
]


def _share(share: int | str) -> int | str:
    """`share` as it is; a ValueError if it is neither a number nor a percentage."""
    if isinstance(share, str) and not re.match(_SHARE, share):
        msg = f"{share!r} is no percentage such as 25%; a number stands without quotes"
        raise ValueError(msg)
    return share


Share = Annotated[
    int | str,
    AfterValidator(_share),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "minimum": 0,
            "maximum": 10_000,
            "pattern": _SHARE,
            "maxLength": 4,
        }
    ),
]
"""A number of pods, or a percentage of them."""


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """CEL rules of a schema node, from pairs of (expression that must hold, what to change)."""
    return {
        "x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]
    }


class ApiModel(BaseModel):
    """What all models share: frozen, camelCase outside, descriptions from attribute docstrings."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )


class SecretKey(ApiModel):
    """A key of a Secret in the namespace of the LLMDeployment."""

    name: ObjectName
    """Name of the Secret."""
    key: ConfigKey
    """Key in its data."""


class LocalReference(ApiModel):
    """Names an object in the namespace of the LLMDeployment."""

    name: ObjectName
    """Name of the object."""
