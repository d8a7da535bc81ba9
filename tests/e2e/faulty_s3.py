"""A proxy on loopback in front of an S3 (or an SQS), which does wrong what a test tells it to."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

PASSED_ON_BY_ITSELF = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server", "expect"}


@dataclass(frozen=True)
class Fault:
    """What becomes of a request. The first of these that is given ends it, delays aside."""

    delay_seconds: float = 0
    # The connection is reset before the request is passed on, or after, when its work is done.
    reset_before: bool = False
    reset_after: bool = False
    # An answer of S3's own making: 500 InternalError, 503 SlowDown and their like.
    status: int | None = None
    # Only this many bytes of the answer's body arrive.
    truncated_to: int | None = None


NO_FAULT = Fault()
Chooser = Callable[[str, str], Fault]


@dataclass
class FaultyS3:
    """The proxy. `choose` gets method and path of every request and says what is to become of it."""

    behind: str
    choose: Chooser = lambda method, path: NO_FAULT
    requests: list[tuple[str, str, Fault]] = field(default_factory=list)

    def __enter__(self) -> Self:
        proxy = self

        class Handler(RequestHandler):
            faulty_s3 = proxy

        self.server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def faults(self) -> Iterator[tuple[str, str, Fault]]:
        return (request for request in self.requests if request[2] != NO_FAULT)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    # Connections that a client keeps open are not waited for.
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A client that has gone is nothing to report."""


class RequestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    faulty_s3: FaultyS3

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.faulty_s3.choose(self.command, self.path)
        self.faulty_s3.requests.append((self.command, self.path, fault))
        time.sleep(fault.delay_seconds)
        if fault.reset_before:
            return self.reset()
        if fault.status is not None:
            return self.answer(fault.status, {"Content-Type": "application/xml"}, error_body(fault.status))
        status, headers, answer = self.pass_on(body)
        if fault.reset_after:
            return self.reset()
        self.answer(status, headers, answer, fault.truncated_to)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_request

    def pass_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in PASSED_ON_BY_ITSELF}
        for last_try in (False, True):
            connection = self.connection_behind()
            try:
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                return response.status, dict(response.getheaders()), response.read()
            except (HTTPException, OSError):
                # It may have been idle for too long.
                connection.close()
                if last_try:
                    raise
        raise AssertionError("unreachable")

    def connection_behind(self) -> HTTPConnection:
        if not hasattr(self, "behind"):
            self.behind = HTTPConnection(urlsplit(self.faulty_s3.behind).netloc, timeout=60)
        return self.behind

    def finish(self) -> None:
        super().finish()
        if hasattr(self, "behind"):
            self.behind.close()

    def answer(self, status: int, headers: dict[str, str], body: bytes, truncated_to: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in PASSED_ON_BY_ITSELF:
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:truncated_to])
        if truncated_to is not None:
            self.reset()

    def reset(self) -> None:
        """Closes so that the client sees a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


def error_body(status: int) -> bytes:
    code = {500: "InternalError", 503: "SlowDown", 403: "AccessDenied", 409: "ConditionalRequestConflict"}[status]
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>As the test wants it</Message></Error>".encode()
