"""What the API's models are made of: a frozen base model, bounded types and CEL rules.

Knows Kubernetes' syntax for names, quantities and images. Does not know what they are used for.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, WithJsonSchema
from pydantic.alias_generators import to_camel

from llm_operator import quantities

PullPolicy = Literal["Always", "IfNotPresent", "Never"]

_DNS_SUBDOMAIN = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"
_IMAGE = r"^[a-zA-Z0-9][-a-zA-Z0-9._:/@]*$"
_QUALIFIED_NAME = r"^([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"

ObjectName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=_DNS_SUBDOMAIN)]
ImageReference = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=_IMAGE)]
ResourceName = Annotated[
    str, StringConstraints(min_length=1, max_length=253, pattern=_QUALIFIED_NAME)
]
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]
AnnotationValue = Annotated[str, StringConstraints(max_length=4096)]
Url = Annotated[
    str, StringConstraints(min_length=8, max_length=512, pattern=r"^https?://[^\s/?#@]+[^\s?#]*$")
]
"""Address of a service, without user, query or fragment."""


def _checked(quantity: int | str) -> int | str:
    """`quantity` as it is; a ValueError if it is none."""
    quantities.parse(quantity)
    return quantity


Quantity = Annotated[
    int | str,
    AfterValidator(_checked),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": quantities.PATTERN,
            "maxLength": 32,
        }
    ),
]


def _share(share: int | str) -> int | str:
    """`share` as it is; a ValueError if it is neither a number nor a percentage."""
    if not re.match(_SHARE, str(share)):
        msg = f"{share!r} is neither a number nor a percentage"
        raise ValueError(msg)
    return share


_SHARE = r"^([0-9]{1,5}|[0-9]{1,3}%)$"

Share = Annotated[
    int | str,
    AfterValidator(_share),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": _SHARE,
            "maxLength": 5,
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
    key: Annotated[
        str, StringConstraints(min_length=1, max_length=253, pattern=r"^[-._A-Za-z0-9]+$")
    ]
    """Key in its data."""


class LocalReference(ApiModel):
    """Names an object in the namespace of the LLMDeployment."""

    name: ObjectName
    """Name of the object."""
