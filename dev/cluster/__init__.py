"""A real one-node Kubernetes cluster on this machine: `python3 -m dev.cluster up`.

Everything is a plain host process of programs built from `dev/tools/`. The package knows the
machine and Kubernetes; it knows nothing of the operator, the server or their images.
"""
