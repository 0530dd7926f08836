"""A collector of OpenTelemetry traces: keeps the spans that are sent to it over OTLP/HTTP."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Collector:
    """Where it is, and what has come: spans by name, and the resources they are of."""

    def __init__(self, url):
        self.url = url
        self.spans = []
        self.resources = []
        self.came = threading.Event()

    def take(self, body):
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(_values(part.resource.attributes))
            for scope in part.scope_spans:
                self.spans.extend(scope.spans)
        self.came.set()

    def named(self, name):
        """The one span of that name."""
        (span,) = [span for span in self.spans if span.name == name]
        return span

    def attributes(self, name):
        return _values(self.named(name).attributes)


def _values(attributes):
    return {one.key: _value(one.value) for one in attributes}


def _value(value):
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)


@contextmanager
def collector():
    """A collector on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            assert self.headers["content-type"] == "application/x-protobuf"
            made.take(body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args): ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
