"""The part of the API about the model: what it is and where it comes from.

Knows HuggingFace's terms and the sources a model can have. Does not know how a source becomes
volumes and variables of a pod (volumes, render).
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from llm_operator.fields import (
    ApiModel,
    ImageReference,
    ObjectName,
    PullPolicy,
    Quantity,
    SecretKey,
    Url,
    rules,
)


class PreloadedSource(ApiModel):
    """The model is part of the inference image. Nothing to set."""


class ImageSource(ApiModel):
    """An OCI image that holds the model directory and is mounted as a read-only image volume."""

    reference: ImageReference
    """Image with the model directory at its root, by tag or digest."""
    pull_policy: PullPolicy | None = None
    """When the kubelet pulls the image. Kubernetes' own default if not set."""


class PersistentVolumeClaimSource(ApiModel):
    """A claim whose volume holds the model directory. It is mounted read-only."""

    claim_name: ObjectName
    """Name of the PersistentVolumeClaim."""
    path: (
        Annotated[
            str,
            StringConstraints(max_length=1024, pattern=r"^[^\x00-\x1f\x7f]+$"),
            Field(
                json_schema_extra=rules(
                    (
                        "!self.startsWith('/') && !self.matches('(^|/)[.][.](/|$)')",
                        "path is relative to the volume: remove the leading / and every ..",
                    )
                )
            ),
        ]
        | None
    ) = None
    """Directory of the model inside the volume. The volume's root if not set."""


class HubCache(ApiModel):
    """Where downloaded files are kept: an existing claim, or a volume of its own for each pod."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.claimName) != has(self.size)",
                "cache takes either claimName, to share a volume, or size, for a volume of each"
                " pod's own: keep one",
            ),
            (
                "!has(self.storageClassName) || has(self.size)",
                "cache.storageClassName belongs to a volume of each pod's own: set size, or remove"
                " it",
            ),
            (
                "!has(self.size) || quantity(string(self.size)).isGreaterThan(quantity('0'))",
                "cache.size is the size of a volume, for example 20Gi",
            ),
        )
    )

    claim_name: ObjectName | None = None
    """PersistentVolumeClaim that all pods share. With more than one replica it must be one that
    many nodes can mount: access mode ReadWriteMany."""
    size: Quantity | None = None
    """Size of a volume that each pod gets for itself. It is made where the pod is scheduled, and
    goes with the pod."""
    storage_class_name: ObjectName | None = None
    """StorageClass of that volume. The cluster's default if not set."""


class HubSource(ApiModel):
    """A HuggingFace hub, from which each pod downloads the model when it starts."""

    endpoint: Url | None = None
    """Address of the hub or of a mirror. The public hub if not set."""
    token_secret: SecretKey | None = None
    """Key of a Secret that holds the access token for a private or gated model."""
    cache: HubCache | None = None
    """Where downloaded files are kept. In the pod, until it is deleted, if not set."""


class ModelSource(ApiModel):
    """Where the model comes from: exactly one of the members."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "[has(self.preloaded), has(self.image), has(self.persistentVolumeClaim),"
                " has(self.hub)].filter(given, given).size() == 1",
                "source names exactly one of preloaded, image, persistentVolumeClaim and hub:"
                " keep one and remove the others",
            )
        )
    )

    preloaded: PreloadedSource | None = None
    """The model is part of the inference image. This is the default."""
    image: ImageSource | None = None
    """The model is in an OCI image of its own, mounted as an image volume."""
    persistent_volume_claim: PersistentVolumeClaimSource | None = None
    """The model is on a volume."""
    hub: HubSource | None = None
    """The model is downloaded when a pod starts."""


class Model(ApiModel):
    """The model to serve, in HuggingFace's terms."""

    id: Annotated[
        str,
        StringConstraints(
            max_length=200,
            pattern=r"^[A-Za-z0-9][-A-Za-z0-9._]*(/[A-Za-z0-9][-A-Za-z0-9._]*)?$",
        ),
    ]
    """Model id on the hub, for example HuggingFaceTB/SmolLM2-135M-Instruct. A server whose image
    holds another model refuses to start."""
    revision: (
        Annotated[
            str,
            StringConstraints(max_length=255, pattern=r"^[A-Za-z0-9][-A-Za-z0-9._/]*$"),
        ]
        | None
    ) = None
    """Commit hash, branch or tag that the model must be of. Any revision if not set; with source
    hub the default branch."""
    served_name: (
        Annotated[
            str,
            StringConstraints(max_length=200, pattern=r"^[A-Za-z0-9][-A-Za-z0-9._/:]*$"),
        ]
        | None
    ) = None
    """Name that clients put into requests. The model id if not set."""
    task: Literal["auto", "generate", "embed"] = "auto"
    """What the model does: generate text, embed text, or auto to take it from the model itself."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format the weights are loaded in; auto takes what suits model and device."""
    quantization: Literal["none", "int8"] | None = None
    """Whether the weights of linear layers are held as 8-bit integers: half the memory of
    bfloat16, nearly the same answers. None if not set."""
    max_length: Annotated[int, Field(ge=16, le=1_048_576)] | None = None
    """Longest sequence in tokens, prompt and output together. The model's own if not set."""
    source: ModelSource = ModelSource()
    """Where the model comes from: exactly one of the members. Preloaded in the inference image if
    not set."""
