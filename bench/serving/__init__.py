"""Load over HTTP against servers of language models, and what they cost beside each other."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""
