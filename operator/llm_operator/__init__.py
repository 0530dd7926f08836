"""A Kubernetes operator for LLM inference: one LLMDeployment becomes a Deployment and a Service."""

__version__ = "0.1.0"
