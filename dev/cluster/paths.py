"""Where everything lies: the checkout's state, the machine's runtime folder, the shared cache.

Three lifetimes. `STORE` (images, build cache) outlives `down`; `CLUSTER` (keys, etcd, kubelet) and
`RUN` (sockets, pid files) end with it; `CACHE` (built programs) is shared by all checkouts.
"""

import os
from pathlib import Path

NAME = "llm-operator-dev"

CHECKOUT = Path(__file__).resolve().parents[2]
TOOL_MODULES = CHECKOUT / "dev" / "tools"

STATE = CHECKOUT / ".dev"
KUBECONFIG = STATE / "kubeconfig"
LOGS = STATE / "logs"
STORE = STATE / "store"
CLUSTER = STATE / "cluster"
PKI = CLUSTER / "pki"
CONFIG = CLUSTER / "config"

# Short, because a UNIX socket's path holds at most 107 characters.
RUN = Path("/run") / NAME
CONTAINERD_SOCKET = RUN / "containerd.sock"
BUILDKIT_SOCKET = RUN / "buildkitd.sock"


def cache() -> Path:
    """The folder of things built once for every checkout: $LLM_OPERATOR_CACHE or the XDG cache."""
    if chosen := os.environ.get("LLM_OPERATOR_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "llm-operator"
