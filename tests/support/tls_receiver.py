"""An endpoint behind TLS that may ask for a client certificate, and says why it refuses one, as OpenSSL does.

In threads and over blocking sockets: asyncio drops a connection whose handshake failed without telling the other side.
"""

import os
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(slots=True)
class TlsReceiver:
    """What came, by the name of the client's certificate (None without one), and why handshakes failed."""

    port: int
    clients: list[str | None] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/hook"


class _Server(ThreadingHTTPServer):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._context = context
        self.receiver = TlsReceiver(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        return self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(10)
        try:
            request.do_handshake()
        except OSError as error:
            self.receiver.refused.append(str(error))
            # Unread, what is on its way would be answered with a reset, and the alert could be lost.
            with suppress(OSError):
                request.shutdown(socket.SHUT_WR)
                while select.select([request], [], [], 2)[0] and os.read(request.fileno(), 65_536):
                    pass
            return
        super().finish_request(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    connection: ssl.SSLSocket

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.receiver.clients.append(_name(self.connection))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_OPTIONS(self) -> None:
        """Agrees to what a handshake asks."""
        self.server.receiver.clients.append(_name(self.connection))
        self.send_response(200)
        self.send_header("WebHook-Allowed-Origin", self.headers["WebHook-Request-Origin"])
        self.send_header("WebHook-Allowed-Rate", "*")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def _name(connection: ssl.SSLSocket) -> str | None:
    certificate: dict[str, Any] = connection.getpeercert() or {}
    return next((value for ((kind, value),) in certificate.get("subject", ()) if kind == "commonName"), None)


@contextmanager
def tls_receiver(context: ssl.SSLContext) -> Iterator[TlsReceiver]:
    """A receiver on 127.0.0.1 that listens with `context` and answers 200."""
    with _Server(context) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server.receiver
        finally:
            server.shutdown()
            thread.join(10)
