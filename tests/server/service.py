"""A stand-in for a Service: connections that stay where they are, and new ones that do not."""

import socket
import threading
from contextlib import contextmanager, suppress

CHUNK = 1 << 16


class Service:
    """Takes connections to the local port that `target` names when they are opened."""

    def __init__(self, target):
        self.target = target
        self.opened = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with suppress(OSError):  # closed
            while True:
                here, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(here,), daemon=True).start()

    def _relay(self, here):
        self.opened.append(self.target)
        with here, socket.create_connection(("127.0.0.1", self.target)) as there:
            back = threading.Thread(target=_copy, args=(there, here), daemon=True)
            back.start()
            _copy(here, there)
            back.join()

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _copy(source, target):
    """Bytes, and the end of them, from one side to the other."""
    with suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def service(target):
    """A Service whose one endpoint is the port `target`, until it is set to another."""
    made = Service(target)
    try:
        yield made
    finally:
        made.close()
