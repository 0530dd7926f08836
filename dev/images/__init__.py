"""Builds the project's images into the development cluster's containerd: no registry, no push."""
