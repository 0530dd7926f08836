"""The API `llm-operator.dev/v1alpha1` as frozen pydantic models: the source of the CRD.

This module knows what a user may write, what it means and which combinations make no sense.
It does not know Kubernetes' objects (render), nor how a schema becomes structural (schema).
What is written as in a pod stands in podspec, what all of it is made of in fields.

Attribute docstrings are the descriptions that `kubectl explain` shows. Defaults are part of the
version: a changed default changes pod templates, so within v1alpha1 they stay what they are.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints

from llm_operator.fields import (
    ApiModel,
    ImageReference,
    LabelKey,
    LabelValue,
    LocalReference,
    ObjectName,
    PullPolicy,
    Quantity,
    ResourceName,
    rules,
)
from llm_operator.podspec import Affinity, EnvVar, Resources, Toleration

GROUP = "llm-operator.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LLMDeployment"
PLURAL = "llmdeployments"
SINGULAR = "llmdeployment"
SHORT_NAMES = ("llm",)

Target = Literal["cpu", "gpu"]

DEFAULT_GPU_RESOURCE = "nvidia.com/gpu"


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
            StringConstraints(min_length=1, max_length=1024),
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


class ModelSource(ApiModel):
    """Where the model comes from: exactly one of the members."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "[has(self.preloaded), has(self.image), has(self.persistentVolumeClaim)]"
                ".filter(given, given).size() == 1",
                "source names exactly one of preloaded, image and persistentVolumeClaim:"
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


class Model(ApiModel):
    """The model to serve, in HuggingFace's terms."""

    id: Annotated[
        str,
        StringConstraints(
            min_length=1,
            max_length=200,
            pattern=r"^[A-Za-z0-9][-A-Za-z0-9._]*(/[A-Za-z0-9][-A-Za-z0-9._]*)?$",
        ),
    ]
    """Model id on the hub, for example HuggingFaceTB/SmolLM2-135M-Instruct. A server whose image
    holds another model refuses to start."""
    revision: (
        Annotated[
            str,
            StringConstraints(
                min_length=1, max_length=255, pattern=r"^[A-Za-z0-9][-A-Za-z0-9._/]*$"
            ),
        ]
        | None
    ) = None
    """Commit hash, branch or tag that the model must be of. Any revision if not set."""
    served_name: (
        Annotated[
            str,
            StringConstraints(
                min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][-A-Za-z0-9._/:]*$"
            ),
        ]
        | None
    ) = None
    """Name that clients put into requests. The model id if not set."""
    task: Literal["auto", "generate", "embed"] = "auto"
    """What the model does: generate text, embed text, or auto to take it from the model itself."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format the weights are loaded in; auto takes what suits model and device."""
    max_length: Annotated[int, Field(ge=16, le=1_048_576)] | None = None
    """Longest sequence in tokens, prompt and output together. The model's own if not set."""
    source: ModelSource = ModelSource()
    """Where the model comes from: exactly one of the members. Preloaded in the inference image if
    not set."""


class Image(ApiModel):
    """The inference image: a repository with one tag per target, or a whole reference per target.

    Without it the operator's default runtime image is used.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!((has(self.cpu) || has(self.gpu)) && (has(self.repository) || has(self.tag)))",
                "image takes either repository and tag, or whole references in cpu and gpu:"
                " remove one of the two",
            )
        )
    )

    repository: ImageReference | None = None
    """Repository of the image. The image of a target is repository:tag-cpu or repository:tag-gpu,
    without a tag repository:cpu or repository:gpu."""
    tag: (
        Annotated[
            str,
            StringConstraints(
                min_length=1, max_length=120, pattern=r"^[A-Za-z0-9_][-A-Za-z0-9._]*$"
            ),
        ]
        | None
    ) = None
    """Tag before the suffix -cpu or -gpu. Alone it applies to the default repository."""
    cpu: ImageReference | None = None
    """Whole reference of the image for target cpu, by tag or digest."""
    gpu: ImageReference | None = None
    """Whole reference of the image for target gpu, by tag or digest."""
    pull_policy: PullPolicy | None = None
    """When the kubelet pulls the image. Kubernetes' own default if not set."""
    pull_secrets: Annotated[
        tuple[LocalReference, ...],
        Field(
            max_length=16,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    """Secrets with registry credentials, in the namespace of the LLMDeployment."""


class Gpu(ApiModel):
    """The GPUs of one replica. Naming any of it asks for a GPU."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.resourceName.startsWith('nvidia.com/')"
                " || !(has(self.products) || has(self.minMemory))",
                "gpu.products and gpu.minMemory read NVIDIA's node labels: remove them and choose"
                " nodes by nodeSelector, or use a resourceName that begins with nvidia.com/",
            )
        )
    )

    count: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs of one replica."""
    resource_name: Annotated[
        ResourceName,
        Field(
            json_schema_extra=rules(
                (
                    "self.contains('/')",
                    "resourceName is the extended resource of a device plugin, for example"
                    " nvidia.com/gpu, amd.com/gpu or nvidia.com/mig-1g.10gb",
                )
            )
        ),
    ] = DEFAULT_GPU_RESOURCE
    """Extended resource that the device plugin offers: nvidia.com/gpu, amd.com/gpu, a MIG
    profile such as nvidia.com/mig-1g.10gb, and so on."""
    products: Annotated[tuple[LabelValue, ...], Field(min_length=1, max_length=32)] | None = None
    """Accepted values of the node label nvidia.com/gpu.product, for example
    NVIDIA-H100-80GB-HBM3."""
    min_memory: Quantity | None = None
    """Least memory of one GPU, compared with the node label nvidia.com/gpu.memory. Cards report a
    little less than their name says: ask for 79Gi or 80G to get an 80 GB card."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pods, where GPUs need one."""


class Server(ApiModel):
    """How the inference server runs. What is not set is the server's own default."""

    max_concurrency: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Most sequences in one batch."""
    max_queue: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Most requests that wait for a place in the batch. One more is answered with 429."""
    request_timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = None
    """Longest time a request may take, waiting included."""
    drain_seconds: Annotated[int, Field(ge=0, le=3600)] = 30
    """Time that running requests get to finish when a pod stops."""
    log_level: Literal["debug", "info", "warning", "error"] | None = None
    """Least severe log messages that the server writes."""
    env: Annotated[
        tuple[EnvVar, ...],
        Field(
            max_length=64,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    """More environment variables of the server container, for example for libraries in it."""


class Probes(ApiModel):
    """When a pod counts as started, ready and alive."""

    startup_budget_seconds: Annotated[int, Field(ge=1, le=86_400)] = 600
    """Time the model has to load before the container is restarted."""
    startup_period_seconds: Annotated[int, Field(ge=1, le=300)] = 1
    """Time between two looks at whether the model is loaded."""
    readiness_period_seconds: Annotated[int, Field(ge=1, le=300)] = 2
    """Time between two looks at whether the pod can serve."""
    liveness_period_seconds: Annotated[int, Field(ge=1, le=300)] = 10
    """Time between two looks at whether the process is alive. Three failures restart it."""


class LLMDeploymentSpec(ApiModel):
    """What is to run."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.target != 'cpu' || !has(self.gpu)",
                "gpu settings have no meaning with target cpu: remove gpu, or set target to gpu"
                " or auto",
            ),
            (
                "!has(self.image) || !has(self.image.cpu) || has(self.image.gpu)"
                " || !(self.target == 'gpu' || has(self.gpu))",
                "image names only a cpu image but a GPU is asked for: add image.gpu",
            ),
            (
                "!has(self.image) || !has(self.image.gpu) || has(self.image.cpu)"
                " || self.target == 'gpu' || has(self.gpu)",
                "image names only a gpu image but no GPU is asked for: add image.cpu, or set"
                " target to gpu",
            ),
            (
                "!has(self.resources) || !['nvidia.com/gpu', 'amd.com/gpu'].exists(name,"
                " (has(self.resources.limits) && name in self.resources.limits)"
                " || (has(self.resources.requests) && name in self.resources.requests))",
                "GPUs are asked for by gpu.count and gpu.resourceName: remove them from resources",
            ),
            (
                "!has(self.resources) || !has(self.gpu)"
                " || !((has(self.resources.limits)"
                " && self.gpu.resourceName in self.resources.limits)"
                " || (has(self.resources.requests)"
                " && self.gpu.resourceName in self.resources.requests))",
                "gpu.resourceName stands in resources too: remove it there and set gpu.count",
            ),
        )
    )

    model: Model
    """The model to serve."""
    image: Image = Image()
    """The inference image. The operator's default runtime image if not set."""
    target: Literal["auto", "cpu", "gpu"] = "auto"
    """Hardware to run on. auto takes gpu if gpu settings are given or a node offers a GPU when the
    LLMDeployment is first seen, else cpu; status.targetReason tells why. The choice stays."""
    gpu: Gpu | None = None
    """The GPUs of one replica."""
    replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Number of pods. 0 stops serving."""
    resources: Resources = Resources()
    """CPU, memory and other resources of one replica."""
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] | None = None
    """Labels that a node must have, for every target."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that the pods tolerate, for every target. The usual taint of the GPU resource is
    tolerated without being named."""
    affinity: Affinity = Affinity()
    """Scheduling constraints, as in a pod."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods."""
    service_account_name: ObjectName | None = None
    """ServiceAccount of the pods. Its token is not mounted."""
    server: Server = Server()
    """How the inference server runs."""
    probes: Probes = Probes()
    """When a pod counts as started, ready and alive."""


class Condition(ApiModel):
    """One aspect of the state, in Kubernetes' standard form."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=316)]
    """Aspect: Ready, Reconciling or Stalled."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds."""
    reason: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    """Why, as one word for programs."""
    message: Annotated[str, StringConstraints(max_length=32768)]
    """Why, as a sentence for people."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When the status last changed."""
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that the condition speaks of."""


class LLMDeploymentStatus(ApiModel):
    """What is running. Written by the operator alone."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that the status speaks of."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        ),
    ] = ()
    """Ready always; Reconciling and Stalled while they are true."""
    target: Target | None = None
    """Hardware that was chosen."""
    target_reason: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """Why it was chosen."""
    image: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """Inference image of the current generation."""
    replicas: Annotated[int, Field(ge=0)] | None = None
    """Pods that exist, old and new."""
    ready_replicas: Annotated[int, Field(ge=0)] | None = None
    """Pods that are ready to serve, old and new."""
    updated_replicas: Annotated[int, Field(ge=0)] | None = None
    """Pods of the current generation."""
    replicas_ready: Annotated[str, StringConstraints(max_length=32)] | None = None
    """Ready and wanted replicas, as in 1/2."""
    selector: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """Label selector of the pods, for the scale subresource."""
    endpoint: Annotated[str, StringConstraints(max_length=512)] | None = None
    """Address of the Service inside the cluster."""


class ObjectMeta(ApiModel):
    """The part of an object's metadata that the operator reads."""

    name: str
    namespace: str
    uid: str
    generation: int = 1
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None


class LLMDeployment(ApiModel):
    """LLMDeployment serves one model behind one Service."""

    metadata: ObjectMeta
    spec: LLMDeploymentSpec
    status: LLMDeploymentStatus = LLMDeploymentStatus()

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """The object in `body`, as the API server gave it.

        Raises:
            pydantic.ValidationError: the body predates a stricter CRD.
        """
        return cls.model_validate(body)
