"""The API `llm-operator.dev/v1alpha1` as frozen pydantic models: the source of the CRD.

This module knows what a user may write, what it means and which combinations make no sense.
It does not know Kubernetes' objects (render), nor how a schema becomes structural (schema).
Larger parts have modules of their own: model, scaling, exposure, status; what is written as in a
pod stands in podspec, what all of it is made of in fields.

Attribute docstrings are the descriptions that `kubectl explain` shows. Defaults are part of the
version: a changed default changes pod templates, so within v1alpha1 they stay what they are.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints

from llm_operator.exposure import Monitoring, NetworkPolicy, Service
from llm_operator.fields import (
    KEYS,
    AnnotationValue,
    ApiModel,
    ImageReference,
    LabelKey,
    LabelValue,
    LocalReference,
    ObjectName,
    PullPolicy,
    Quantity,
    Repository,
    ResourceName,
    SecretKey,
    Share,
    rules,
)
from llm_operator.model import Model
from llm_operator.podspec import (
    Affinity,
    EnvFromSource,
    EnvVar,
    Resources,
    Toleration,
    TopologySpreadConstraint,
)
from llm_operator.scaling import Autoscaling
from llm_operator.status import LLMDeploymentStatus

GROUP = "llm-operator.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LLMDeployment"
PLURAL = "llmdeployments"
SINGULAR = "llmdeployment"
SHORT_NAMES = ("llm",)

DEFAULT_GPU_RESOURCE = "nvidia.com/gpu"

# What the operator and the Deployment say about pods, and select them by.
_OWN_LABELS = (
    "self.all(key, !key.startsWith('llm-operator.dev/') && !(key in ["
    "'app.kubernetes.io/name', 'app.kubernetes.io/instance', 'app.kubernetes.io/component',"
    " 'app.kubernetes.io/part-of', 'app.kubernetes.io/managed-by', 'pod-template-hash']))",
    "pod-template-hash, app.kubernetes.io/name, instance, component, part-of and managed-by and"
    " keys that begin with llm-operator.dev/ are set by the operator: use other keys",
)
_OWN_ANNOTATIONS = (
    "self.all(key, !key.startsWith('llm-operator.dev/'))",
    "keys that begin with llm-operator.dev/ are set by the operator: use other keys",
)


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

    repository: Repository | None = None
    """Name of the image without tag and digest. The image of a target is repository:tag-cpu or
    repository:tag-gpu, without a tag repository:cpu or repository:gpu."""
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
            ),
            (
                "!has(self.minMemory) || quantity(string(self.minMemory)).isGreaterThan(quantity("
                "'0')) && quantity(string(self.minMemory)).isLessThan(quantity('1Pi'))",
                "gpu.minMemory is the memory of one GPU, for example 40G",
            ),
        )
    )

    count: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs of one replica."""
    resource_name: Annotated[
        ResourceName,
        Field(
            json_schema_extra=rules(
                (
                    "self.contains('/') && !self.contains('kubernetes.io/')"
                    " && !self.startsWith('requests.')",
                    "gpu.resourceName is the extended resource of a device plugin, for example"
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
    max_queue_tokens: Annotated[int, Field(ge=1, le=2_147_483_648)] | None = None
    """Most tokens that wait, prompts and longest outputs together, where the model generates. More
    are answered with 429."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=1_073_741_824)] | None = None
    """Largest body of a request. A larger one is answered with 413."""
    request_timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = None
    """Longest time a request may take, waiting included."""
    receive_timeout_seconds: Annotated[int, Field(ge=1, le=3600)] | None = None
    """Time that a client has to send a request's head, and then its body."""
    step_timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = None
    """A forward pass that takes longer is taken to hang, and the liveness probe fails."""
    stream_comment_seconds: Annotated[int, Field(ge=1, le=3600)] | None = None
    """Silence in a stream after which a comment fills it, for proxies that close what is idle."""
    drain_seconds: Annotated[int, Field(ge=0, le=3600)] = 30
    """Time that running requests get to finish when a pod stops."""
    api_key_secret: SecretKey | None = None
    """Key of a Secret that holds the accepted API keys, one a line. Everybody may ask if not set.
    A changed Secret is taken up without a restart."""
    log_level: Literal["debug", "info", "warning", "error"] | None = None
    """Least severe log messages that the server writes."""
    log_format: Literal["auto", "json", "text"] | None = None
    """Form of the log messages. auto writes JSON in a pod."""
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
    env_from: Annotated[tuple[EnvFromSource, ...], Field(max_length=16)] = ()
    """Secrets and ConfigMaps whose keys become environment variables of the server container. A
    changed one restarts the pods, one after the other."""


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


class Rollout(ApiModel):
    """How pods of a new generation replace the old ones."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.strategy == 'RollingUpdate' || !(has(self.maxSurge)"
                " || has(self.maxUnavailable))",
                "rollout.maxSurge and rollout.maxUnavailable belong to strategy RollingUpdate: set"
                " it, or remove them",
            ),
            (
                "!has(self.maxSurge) || !has(self.maxUnavailable)"
                " || !(string(self.maxSurge) in ['0', '0%']"
                " && string(self.maxUnavailable) in ['0', '0%'])",
                "with rollout.maxSurge and rollout.maxUnavailable both 0 no pod could ever be"
                " replaced: raise one of them",
            ),
        )
    )

    strategy: Literal["auto", "RollingUpdate", "Recreate"] = "auto"
    """auto starts a new pod before it stops an old one; where no GPU is free for the new one, the
    old one goes first. RollingUpdate does what maxSurge and maxUnavailable say, even if it waits
    for a GPU for ever. Recreate stops all pods before it starts new ones."""
    max_surge: Share | None = None
    """Most pods above spec.replicas, as a number or percentage. 1 if not set."""
    max_unavailable: Share | None = None
    """Most pods below spec.replicas, as a number or percentage. If not set 0, or 1 where maxSurge
    is 0."""


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
                "!(['nvidia.com/gpu', 'amd.com/gpu'] + (has(self.gpu) ? [self.gpu.resourceName]"
                " : [])).exists(name, name in self.?resources.?limits.orValue({})"
                " || name in self.?resources.?requests.orValue({}))",
                "GPUs are asked for by gpu.count and gpu.resourceName: remove them from resources",
            ),
            (
                "!has(self.autoscaling) || has(self.hardwareProfile)"
                " || self.autoscaling.?metric.?type.orValue('cpu') != 'cpu'"
                " || 'cpu' in self.?resources.?requests.orValue({})"
                " || 'cpu' in self.?resources.?limits.orValue({})",
                "autoscaling follows the use of CPU in percent of resources.requests.cpu, which is"
                " not set: set it, or choose another autoscaling.metric.type",
            ),
            (
                "!has(self.server) || !has(self.server.env) || !has(self.model.source)"
                " || !has(self.model.source.hub) || !self.server.env.exists(variable,"
                " variable.name in ['HF_ENDPOINT', 'HF_TOKEN'])",
                "HF_ENDPOINT and HF_TOKEN are made from model.source.hub: set its endpoint and"
                " tokenSecret instead",
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
    hardware_profile: ObjectName | None = None
    """Name of a hardware profile that the operator was installed with: resources, GPUs, node
    selection. What the spec itself says goes before it."""
    replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Number of pods. 0 stops serving. With autoscaling it is set by the autoscaler."""
    autoscaling: Autoscaling | None = None
    """Bounds for the number of replicas and what it follows. Fixed if not set."""
    suspend: bool = False
    """Stop all pods and keep everything else, until it is false again."""
    resources: Resources = Resources()
    """CPU, memory and other resources of one replica."""
    node_selector: (
        Annotated[dict[LabelKey, LabelValue], Field(max_length=32, json_schema_extra=rules(KEYS))]
        | None
    ) = None
    """Labels that a node must have, for every target."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that the pods tolerate, for every target. The usual taint of the GPU resource is
    tolerated without being named."""
    affinity: Affinity = Affinity()
    """Scheduling constraints, as in a pod."""
    topology_spread_constraints: (
        Annotated[
            tuple[TopologySpreadConstraint, ...],
            Field(
                max_length=8,
                json_schema_extra={
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["topologyKey", "whenUnsatisfiable"],
                },
            ),
        ]
        | None
    ) = None
    """How the pods spread, as in a pod. Over zones and nodes as far as possible if not set."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods."""
    scheduler_name: ObjectName | None = None
    """Scheduler of the pods. Kubernetes' own if not set."""
    service_account_name: ObjectName | None = None
    """ServiceAccount of the pods. Its token is not mounted."""
    server: Server = Server()
    """How the inference server runs."""
    probes: Probes = Probes()
    """When a pod counts as started, ready and alive."""
    rollout: Rollout = Rollout()
    """How pods of a new generation replace the old ones."""
    service: Service = Service()
    """The Service in front of the pods."""
    network_policy: NetworkPolicy = NetworkPolicy()
    """Who may talk to the pods, and to whom they may talk."""
    monitoring: Monitoring = Monitoring()
    """How Prometheus finds the pods."""
    pod_labels: (
        Annotated[
            dict[LabelKey, LabelValue],
            Field(max_length=32, json_schema_extra=rules(KEYS, _OWN_LABELS)),
        ]
        | None
    ) = None
    """Further labels of the pods."""
    pod_annotations: (
        Annotated[
            dict[LabelKey, AnnotationValue],
            Field(max_length=32, json_schema_extra=rules(KEYS, _OWN_ANNOTATIONS)),
        ]
        | None
    ) = None
    """Further annotations of the pods."""


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
