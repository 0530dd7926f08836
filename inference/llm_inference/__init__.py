"""An OpenAI-compatible server for one transformers model in one container."""

__version__ = "0.1.0"
