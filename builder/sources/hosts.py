"""Whether a host has an address, asked once: without a network, a build says so once."""

from __future__ import annotations

import socket
import threading
from typing import Any
from urllib.parse import urlsplit

from builder.errors import NetworkError


class NoHost(NetworkError):
    """A host name without an address: no other model needs to ask."""

    def __init__(self, url: str) -> None:
        super().__init__(
            f"the host name {urlsplit(url).hostname} does not resolve (no network?).",
            hint="connect, and run the same command again.",
        )


class Resolves:
    """Whether the host of a URL has an address, or a proxy that will know.

    Looks every host up once, whichever thread asks; on another machine, once more.
    """

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}
        self._one_at_a_time = threading.Lock()

    def __call__(self, url: str) -> bool:
        from requests.utils import get_environ_proxies, select_proxy

        host = urlsplit(url).hostname or ""
        if select_proxy(url, get_environ_proxies(url, no_proxy=None)):
            return True
        with self._one_at_a_time:
            if host not in self._known:
                try:
                    self._known[host] = bool(socket.getaddrinfo(host, None))
                except (OSError, UnicodeError):
                    self._known[host] = False
            return self._known[host]

    def __reduce__(self) -> tuple[Any, ...]:
        return Resolves, ()
