"""Takes models from a hub: which files make one, how they are asked for, what can go wrong.

Used by the image build, which packs them, and by the server, which may fetch its own.
"""


class HubError(Exception):
    """The hub does not give the model; the message is one sentence that says why."""


class HubUnreachableError(HubError):
    """Nothing is known of the model, because the hub does not answer."""
