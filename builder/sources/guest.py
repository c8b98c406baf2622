"""Other people's code: what it needs to run as it does elsewhere, and what it must not change."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from builder.errors import BuilderError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

_ALONE = threading.RLock()  # most of what a guest may change belongs to the process


@contextlib.contextmanager
def blamed(what: str, hint: str = "", error: type[BuilderError] = UsageError) -> Iterator[None]:
    """Whatever somebody else's code raises within, a call of sys.exit included, as one message.

    Raises:
        error: "WHAT: ValueError: its own words.", with the exception as its cause. Our own errors
            and an interruption pass unchanged.
    """
    try:
        yield
    except (BuilderError, KeyboardInterrupt):
        raise
    except BaseException as e:
        words = ""
        with contextlib.suppress(Exception):  # its own class may not have any
            words = str(e).strip().partition("\n")[0].rstrip(".")
        if isinstance(e, SystemExit):
            words = f"it ended the program ({words or 0})"
        said = f"{type(e).__name__}: {words}" if words else type(e).__name__
        raise error(f"{what}: {said}.", hint=hint) from e


@contextlib.contextmanager
def guest() -> Iterator[None]:
    """Run somebody else's code: one at a time, and without a trace once it is done.

    It sees what a script of its own would: the current folder first among the places of modules,
    and no command line. Its prints go to stderr, and neither the default device nor what Ctrl-C
    does is its to set. The current folder, stderr, the depth of recursion, torch's default element
    type, gradients, threads and determinism are afterwards what they were before; what it adds to
    sys.path stays, since modules may be imported later.
    """
    import torch

    with _ALONE, prints_to_stderr():
        settings: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
            (torch.get_default_dtype, torch.set_default_dtype),
            (torch.is_grad_enabled, torch.set_grad_enabled),
            (torch.get_num_threads, torch.set_num_threads),
            (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
            (Path.cwd, os.chdir),
            (sys.getrecursionlimit, sys.setrecursionlimit),
        ]
        before = [get() for get, _ in settings]
        here, argv, stderr = str(Path.cwd()), sys.argv, sys.stderr
        set_default_device, handle = torch.set_default_device, signal.signal
        sys.path.insert(0, here)  # as `python` does; the `builder` script does not
        sys.argv = argv[:1]
        torch.set_default_device = lambda device: None
        signal.signal = lambda signalnum, handler: signal.getsignal(signalnum)
        try:
            yield
        finally:
            sys.argv, sys.stderr = argv, stderr
            torch.set_default_device, signal.signal = set_default_device, handle
            if here in sys.path:
                sys.path.remove(here)
            for (get, restore), value in zip(settings, before, strict=True):
                if get() != value:
                    restore(value)


@contextlib.contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Stdout is for data: what Python, a library in C or a child prints within goes to stderr."""
    stdout = sys.stdout
    if stdout is None:  # closed: its number may be that of another file
        yield
        return
    stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        stdout.flush()  # somebody may have kept it
        with contextlib.suppress(OSError, TypeError, AttributeError):  # Windows has no such library
            ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in what a forward pass takes or returns, at any depth, in order."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
        return
    if isinstance(value, SimpleNamespace):
        value = vars(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type | Mapping):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
