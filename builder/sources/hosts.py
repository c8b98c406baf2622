"""Whether a host has an address, asked once: without a network, a build says so once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

from builder.errors import NetworkError

Resolves = Callable[[str], bool]
"""Whether the host of a URL has an address, or a proxy that will know."""


class NoHost(NetworkError):
    """A host name without an address: no other model needs to ask."""

    def __init__(self, url: str) -> None:
        super().__init__(
            f"the host name {urlsplit(url).hostname} does not resolve (no network?).",
            hint="connect, and run the same command again.",
        )


def resolver() -> Resolves:
    """A `Resolves` that looks every host up once, whichever thread asks."""
    known: dict[str, bool] = {}
    one_at_a_time = threading.Lock()

    def resolves(url: str) -> bool:
        from requests.utils import get_environ_proxies, select_proxy

        host = urlsplit(url).hostname or ""
        if select_proxy(url, get_environ_proxies(url, no_proxy=None)):
            return True
        with one_at_a_time:
            if host not in known:
                try:
                    known[host] = bool(socket.getaddrinfo(host, None))
                except (OSError, UnicodeError):
                    known[host] = False
            return known[host]

    return resolves
