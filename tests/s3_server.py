"""A real S3 server (moto's, in an environment of its own) behind a proxy that misbehaves."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MOTO = Path(__file__).parents[1] / ".venv" / "moto" / "bin" / "moto_server"
"""Made by `make .venv/.moto`: its pins differ from ours."""

DROP = "drop"
"""A fault: the connection ends without an answer."""
DROP_AFTER = "drop after"
"""A fault: the request is carried out, and then its connection ends without an answer."""

Fault = str | float | tuple[int, str] | None
"""DROP, DROP_AFTER, seconds to wait, or a status and an S3 error code."""


@dataclass
class Store:
    """The proxy: its address, the requests it saw, and what happens to the next ones."""

    url: str
    moto: str
    log: list[str] = field(default_factory=list)
    fault: Callable[[int, str], Fault] = lambda index, request: None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self) -> None:
        """No fault, nothing seen, and nothing in the server but an empty bucket."""
        self.log.clear()
        self.fault = lambda index, request: None
        _ask(self.moto, "POST", "/moto-api/reset")
        _ask(self.moto, "PUT", "/bucket")

    def seen(self, request: str) -> int:
        with self._lock:
            self.log.append(request)
            return len(self.log) - 1


def _ask(
    server: str, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, list[tuple[str, str]], bytes]:
    connection = http.client.HTTPConnection(server, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        connection.close()


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits for an acknowledgement
    store: Store

    def log_message(self, *args: object) -> None:
        pass

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{self.command} {self.path}"
        fault = self.store.fault(self.store.seen(request), request)
        if fault == DROP:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if isinstance(fault, tuple):
            status, code = fault
            said = (
                f"<Error><Code>{code}</Code><Message>no</Message>"
                f"<AWSAccessKeyId>{os.environ['AWS_ACCESS_KEY_ID']}</AWSAccessKeyId></Error>"
            )
            self._answer(status, [], said.encode())
            return
        if isinstance(fault, float):
            time.sleep(fault)
        status, headers, answer = _ask(
            self.store.moto, self.command, self.path, body, dict(self.headers.items())
        )
        if fault == DROP_AFTER:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        length = {n.lower(): v for n, v in headers}.get("content-length")
        head = self.command == "HEAD" and length is not None
        self.send_header("Content-Length", length if head else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def running_store() -> Iterator[Store]:
    """The server and its proxy, on free ports of 127.0.0.1."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [str(MOTO), "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as moto:
        try:
            end = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert time.monotonic() < end and moto.poll() is None, "moto does not start"
                    time.sleep(0.1)
            handler = type("Handler", (_Proxy,), {})
            with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
                url = f"http://127.0.0.1:{proxy.server_address[1]}"
                handler.store = Store(url, f"127.0.0.1:{port}")  # type: ignore[attr-defined]
                threading.Thread(target=proxy.serve_forever, daemon=True).start()
                yield handler.store  # type: ignore[attr-defined]
                proxy.shutdown()
        finally:
            moto.terminate()
