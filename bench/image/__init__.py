"""What the multi-stage images weigh and take beside those of a single-stage Dockerfile."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""
HERE = Path(__file__).parent
"""The folder of the Dockerfiles that are compared with."""
