"""Puts a model into an image: fetches it, lists it, proves that it loads.

Runs in the image's builder stage and is in no image itself.
"""


class PreloadError(Exception):
    """The model cannot go into an image; the message is one sentence that says why."""
