"""A file server on 127.0.0.1 that misbehaves on request."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request. Faults of a path are used up one by one."""

    status: int = 200  # another one is answered without the file
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None  # close the connection behind so many bytes of the answer
    announce: int | None = None  # a wrong Content-Length
    page: str | None = None  # a web page in place of the file
    body: bytes | None = None  # other bytes in place of the file
    slow: float = 0.0  # seconds between two pieces of 64 KiB of the answer
    skip: bool = False  # nothing: behave


@dataclass
class FileServer:
    """Paths (with their query) -> bytes; `log` has (path, headers) of every request."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    log: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    ranges: bool = True
    validators: bool = True

    def ranges_asked(self) -> list[str | None]:
        return [headers.get("range") for _, headers in self.log]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: FileServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        state = self.state
        headers = {k.lower(): v for k, v in self.headers.items()}
        state.log.append((self.path, headers))
        queue = state.faults.get(self.path, [])
        fault = queue.pop(0) if queue else Fault()
        if fault.body is not None:
            self._answer(fault.status, fault.body, fault, "application/octet-stream")
            return
        if self.path not in state.files and fault.page is None and fault.status == 200:
            fault = Fault(status=404)
        if fault.status != 200 or fault.page is not None:
            self._answer(fault.status, (fault.page or "no").encode(), fault, "text/html")
            return
        data = state.files[self.path]
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        extra = {"ETag": etag} if state.validators else {}
        match = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        if state.ranges and match and headers.get("if-range") == etag:
            start = int(match[1])
            if start >= len(data):
                extra["Content-Range"] = f"bytes */{len(data)}"
                self._answer(416, b"", fault, "text/plain", extra)
                return
            extra["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._answer(206, data[start:], fault, "application/octet-stream", extra)
            return
        self._answer(200, data, fault, "application/octet-stream", extra)

    def _answer(
        self, status: int, body: bytes, fault: Fault, kind: str, extra: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        length = len(body) if fault.announce is None else fault.announce
        all_headers = {"Content-Type": kind, "Content-Length": str(length)}
        for name, value in {**all_headers, **(extra or {}), **fault.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        sent = body if fault.drop_after is None else body[: fault.drop_after]
        step = 1 << 16 if fault.slow else max(1, len(sent))
        for i in range(0, len(sent), step):
            time.sleep(fault.slow)
            try:
                self.wfile.write(sent[i : i + step])
            except ConnectionError:  # the client left
                self.close_connection = True
                return
        if len(sent) != length:
            self.close_connection = True


@contextmanager
def serve() -> Iterator[FileServer]:
    """A server for the length of a with-block."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    state = FileServer(f"http://127.0.0.1:{server.server_address[1]}")
    handler.state = state  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
