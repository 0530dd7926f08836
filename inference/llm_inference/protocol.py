"""HTTP/1.1 as uvicorn speaks it, with bounds on what comes before a request's body.

Knows bytes and connections: a request's head must be small and come in time. Does not know what
is asked; bodies are the business of `body`.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from llm_inference.errors import ApiError

# Bytes of request line and headers: what nginx and Node take, twice over.
_MAX_HEAD = 32 * 1024

_LINGER_SECONDS = 2.0


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    `head_seconds` is how long a request's head may take from its first byte to its last.
    """

    head_seconds = 60.0

    _in_head = False
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _too_large = False
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called with a new connection, which may be idle as long as any other."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the connection is gone."""
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called with whatever has come."""
        if self._refused:
            return
        super().data_received(data)
        if self._in_head and not self._refused:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD:
                self._too_large = True
                self.send_400_response("")

    def on_message_begin(self) -> None:
        """Called by the parser with a request's first byte."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._head_timer = self.loop.call_later(self.head_seconds, self._head_is_late)

    def on_headers_complete(self) -> None:
        """Called by the parser once the head has come; starts the application.

        Raises:
            ValueError: the head is too large; the parser makes it an error of its own.
        """
        self._end_head()
        fields = sum(len(name) + len(value) for name, value in self.headers)
        if len(self.url) + fields > _MAX_HEAD:
            self._too_large = True
            raise ValueError("the head is too large")
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Called where a request cannot be read: answer in OpenAI's shape and close."""
        if self._too_large:
            error = ApiError(431, f"The request's head is larger than {_MAX_HEAD} bytes.")
        else:
            error = ApiError(400, msg)
        self._refuse(error)

    def _head_is_late(self) -> None:
        self._refuse(ApiError(408, f"The request's head took longer than {self.head_seconds:g} s."))

    def _end_head(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, error: ApiError) -> None:
        self._end_head()
        # An answer that is being sent on this connection must not be mixed with another.
        if self.cycle is None or self.cycle.response_complete:
            response = error.response()
            lines = [name + b": " + value for name, value in response.raw_headers]
            head = b"\r\n".join([*lines, b"connection: close", b"", b""])
            self.transport.write(STATUS_LINE[response.status_code] + head + response.body)
        # A client that still sends would be told that the connection is reset, and not why, if
        # it were closed at once.
        self._refused = True
        self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)
