"""Runs one transformers model for many requests at once. Knows nothing of HTTP.

`interface` is what the rest of the server sees; nothing there imports torch. `loader` builds
an engine from a model directory and is the one module that is imported late, in a thread.
"""
