"""The API keys that requests may carry, read from a file that may change while it is served.

Knows the file and how keys are compared; does not know HTTP. Keeps digests, never a key, and
writes none into a log or a message.
"""

import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

# Seconds between two looks at the file, at most one for each request.
_LOOK_SECONDS = 1.0

# What a file was when it was read: device, inode, nanoseconds of its last change, bytes.
_Seen = tuple[int, int, int, int]


class KeysError(ValueError):
    """The file of keys cannot be used; the message is one sentence without a key in it."""


class KeyFile:
    """The keys of a file with one key a line; blank lines and lines that begin with # are none.

    A file that is changed or replaced is read again, also behind a symbolic link, as Kubernetes
    swaps the folder of a mounted Secret. One that can no longer be read, or holds no key, is an
    error in the log, and the keys that were good before stay.

    Args:
        path: the file.
        clock: seconds, monotonic.

    Raises:
        KeysError: the file cannot be read now, or holds no key.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._looked_at = clock()
        self._seen: _Seen | None = None
        self._error: str | None = None
        self._digests = self._read()

    def accepts(self, key: bytes) -> bool:
        """Whether `key` is one of the keys; takes as long for every wrong one."""
        self._renew()
        digest = hashlib.sha256(key).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found

    def _renew(self) -> None:
        now = self._clock()
        if now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        try:
            if self._error is None and self._look() == self._seen:
                return
            self._digests = self._read()
        except (KeysError, OSError) as error:
            reason = str(error) if isinstance(error, KeysError) else self._unreadable(error)
            if reason != self._error:
                logger.error("%s: the keys read before stay good", reason)  # noqa: TRY400
            self._error = reason
        else:
            self._error = None
            logger.info("%s has changed: %d keys are good now", self._path, len(self._digests))

    def _look(self) -> _Seen:
        found = self._path.stat()
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    def _read(self) -> tuple[bytes, ...]:
        try:
            # Looked at first: what changes in between is seen to have changed the next time.
            self._seen = self._look()
            content = self._path.read_bytes()
        except OSError as error:
            raise KeysError(self._unreadable(error)) from None
        lines = (line.strip() for line in content.splitlines())
        keys = {line for line in lines if line and not line.startswith(b"#")}
        if not keys:
            raise KeysError(f"{self._path} holds no API key")
        return tuple(hashlib.sha256(key).digest() for key in sorted(keys))

    def _unreadable(self, error: OSError) -> str:
        return f"{self._path} cannot be read: {error.strerror}"
