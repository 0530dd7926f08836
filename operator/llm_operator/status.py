"""The part of the API that the operator writes: the status of an LLMDeployment.

Knows its fields and their units. Does not know how they are found out (conditions, coldstart).
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from llm_operator.fields import ApiModel

Target = Literal["cpu", "gpu"]

UNOBSERVED = -1
"""Generation that a new object's status speaks of. By none kstatus would take it for done."""

Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class Condition(ApiModel):
    """One aspect of the state, in Kubernetes' standard form."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=316)]
    """Aspect, such as Ready."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds."""
    reason: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    """Why, as one word for programs."""
    message: Annotated[str, StringConstraints(max_length=32768)]
    """Why, as a sentence for people."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When the status last changed."""
    observed_generation: Count | None = None
    """Generation of the spec it speaks of."""


class Device(ApiModel):
    """What the newest pod's server says it runs on."""

    type: Annotated[str, StringConstraints(max_length=32)]
    """Kind of device: cpu or cuda."""
    name: Annotated[str, StringConstraints(max_length=256)] | None = None
    """Name of the device."""
    dtype: Annotated[str, StringConstraints(max_length=32)] | None = None
    """Number format the model computes in."""
    memory: Count | None = None
    """Memory of the device in bytes, as far as the server may use it."""
    threads: Count | None = None
    """Threads the server computes with."""


class ColdStart(ApiModel):
    """How the newest pod came to serve: seconds in each phase, in the order they follow."""

    pod: Annotated[str, StringConstraints(max_length=253)]
    """Name of the pod."""
    total: Annotated[str, StringConstraints(max_length=16)]
    """From the making of the pod until it was ready, as in 4.1s."""
    scheduled: Seconds | None = None
    """Until a node was found."""
    image_pulled: Seconds | None = None
    """Pulling the image, as the kubelet tells it; 0 if it was there."""
    container_started: Seconds | None = None
    """Until the container ran, without the pull: volumes, sandbox, start."""
    process_up: Seconds | None = None
    """Until the server's process answered."""
    model_downloaded: Seconds | None = None
    """Downloading the model, with source hub."""
    weights_loaded: Seconds | None = None
    """Loading the weights."""
    warmed_up: Seconds | None = None
    """Warming up, until the server could serve."""
    ready: Seconds | None = None
    """Until the kubelet saw it."""
    image_bytes: Count | None = None
    """Size of the image as the kubelet told it when pulling."""


class LLMDeploymentStatus(ApiModel):
    """What is running. Written by the operator alone."""

    observed_generation: Annotated[int, Field(ge=UNOBSERVED)] | None = None
    """Generation of the spec it speaks of; -1 before any."""
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
    """Ready always; Reconciling and Stalled while true; Accelerated with target gpu;
    Autoscaled with autoscaling."""
    target: Target | None = None
    """Hardware that was chosen."""
    target_reason: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """Why it was chosen."""
    image: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """Inference image of the current generation."""
    replicas: Count | None = None
    """Pods that exist, old and new."""
    ready_replicas: Count | None = None
    """Pods that are ready to serve, old and new."""
    updated_replicas: Count | None = None
    """Pods of the current generation."""
    replicas_ready: Annotated[str, StringConstraints(max_length=32)] | None = None
    """Ready and wanted replicas, as in 1/2."""
    selector: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """Label selector of the pods, for the scale subresource."""
    endpoint: Annotated[str, StringConstraints(max_length=512)] | None = None
    """Address of the Service inside the cluster."""
    device: Device | None = None
    """What the newest pod's server says it runs on."""
    cold_start: ColdStart | None = None
    """How the newest pod came to serve."""
