# Every image, for a registry, with a model:
#   REGISTRY=ghcr.io/me TAG=smollm2 MODEL_ID=HuggingFaceTB/SmolLM2-135M-Instruct \
#     docker buildx bake --push
#
# One model more: `MODEL_ID=org/name MODEL_REVISION=<40 hex digits> docker buildx bake inference`.
# Without MODEL_ID the images hold no model; they serve one that is mounted or downloaded.

variable "REGISTRY" {
  default = "localhost"
  description = "Where the images go: registry and namespace."
}

variable "TAG" {
  default = ""
  description = "Inference images are tagged TAG-cpu and TAG-gpu; without a TAG, cpu and gpu."
}

variable "VERSION" {
  default = "0.1.0"
  description = "The version that the images' labels state, and the operator's tag."
}

variable "REVISION" {
  default = ""
  description = "The commit that the images' labels state."
}

variable "MODEL_ID" {
  default = ""
  description = "The model to preload, by its id on the hub."
}

variable "MODEL_REVISION" {
  default = ""
  description = "Its revision: a commit, tag or branch; empty for main."
}

variable "MODEL_FILE" {
  default = ""
  description = "A GGUF file of that model to convert, in place of its safetensors."
}

variable "MODEL_DIR" {
  default = ""
  description = "A directory that holds the model; empty takes it from the hub."
}

variable "MODEL_DTYPE" {
  default = ""
  description = "Store the weights as float32, bfloat16 or float16; empty leaves them as they are."
}

variable "BASE_IMAGE" {
  default = "python:3.13-slim"
}

variable "HF_ENDPOINT" {
  default = "https://huggingface.co"
}

variable "TORCH_CPU_INDEX" {
  default = "https://download.pytorch.org/whl/cpu"
}

variable "PACKAGE_INDEX" {
  default = ""
  description = "A Python package index of your own; empty for the default one."
}

variable "CA_BUNDLE" {
  default = ""
  description = "A file of certificates that builds trust, and that no image keeps."
}

group "default" {
  targets = ["operator", "inference"]
}

group "inference" {
  targets = ["cpu", "gpu"]
}

target "_common" {
  context = "."
  platforms = ["linux/amd64"]
  args = {
    BASE_IMAGE = BASE_IMAGE
    PACKAGE_INDEX = PACKAGE_INDEX
    VERSION = VERSION
    REVISION = REVISION
  }
  secret = notequal(CA_BUNDLE, "") ? ["id=ca_bundle,src=${CA_BUNDLE}"] : []
  attest = ["type=provenance,mode=max", "type=sbom"]
}

target "_model" {
  inherits = ["_common"]
  dockerfile = "Dockerfile.inference"
  contexts = { for name, directory in { model = MODEL_DIR } : name => directory if directory != "" }
  args = {
    MODEL_ID = MODEL_ID
    MODEL_REVISION = MODEL_REVISION
    MODEL_FILE = MODEL_FILE
    MODEL_DTYPE = MODEL_DTYPE
    HF_ENDPOINT = HF_ENDPOINT
    TORCH_CPU_INDEX = TORCH_CPU_INDEX
  }
  secret = ["id=hf_token,env=HF_TOKEN"]
}

target "operator" {
  inherits = ["_common"]
  dockerfile = "Dockerfile.operator"
  target = "operator"
  tags = ["${REGISTRY}/llm-operator:${VERSION}"]
}

target "cpu" {
  inherits = ["_model"]
  target = "cpu"
  tags = ["${REGISTRY}/llm-inference:${notequal(TAG, "") ? "${TAG}-" : ""}cpu"]
}

target "gpu" {
  inherits = ["_model"]
  target = "gpu"
  tags = ["${REGISTRY}/llm-inference:${notequal(TAG, "") ? "${TAG}-" : ""}gpu"]
}

# The model alone, for `spec.model.source.image`.
target "weights" {
  inherits = ["_model"]
  target = "weights"
  tags = ["${REGISTRY}/llm-weights:${notequal(TAG, "") ? TAG : "latest"}"]
}
