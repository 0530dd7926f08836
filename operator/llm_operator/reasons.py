"""Reasons of conditions and Events: one word each, for programs and for `kubectl get`."""

# The way of a healthy object
ROLLOUT_IN_PROGRESS = "RolloutInProgress"
MODEL_LOADING = "ModelLoading"
MODEL_SERVING = "ModelServing"
SCALED_TO_ZERO = "ScaledToZero"
SUSPENDED = "Suspended"

# In the way of its objects
INVALID_SPEC = "InvalidSpec"
NAME_CONFLICT = "NameConflict"
QUOTA_EXCEEDED = "QuotaExceeded"
FORBIDDEN = "Forbidden"
KIND_NOT_SERVED = "KindNotServed"
IMAGE_VOLUMES_UNSUPPORTED = "ImageVolumesUnsupported"
API_ERROR = "ApiError"

# In the way of its pods
POD_CREATION_FAILED = "PodCreationFailed"
UNSCHEDULABLE = "Unschedulable"
VOLUME_NOT_READY = "VolumeNotReady"
SANDBOX_FAILED = "SandboxFailed"
IMAGE_PULL_FAILED = "ImagePullFailed"
MODEL_LOAD_FAILED = "ModelLoadFailed"
STARTUP_BUDGET_EXCEEDED = "StartupBudgetExceeded"
CRASH_LOOPING = "CrashLooping"
OUT_OF_MEMORY = "OutOfMemory"
NOT_READY = "NotReady"
NODE_LOST = "NodeLost"
PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"

# Whether a GPU does the work
GPU_IN_USE = "GPUInUse"
CPU_FALLBACK = "CPUFallback"
NOT_REPORTED = "NotReported"
