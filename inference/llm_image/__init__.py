"""What an image keeps of what its builder stages installed; run by the build, in no image itself.

A runtime needs less than an installation brings: no headers, no symbols for debuggers, no library
that serving never calls, nothing of the system that installs packages or logs users in.
"""


class ImageError(Exception):
    """The build cannot go on; the message is one sentence that says what to do."""
