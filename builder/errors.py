"""The one exception a user's mistake raises, and the exit codes of every command."""

from __future__ import annotations

from typing import Any

EXIT_OK = 0
EXIT_FAILURE = 1  # findings, failed checks, an incomplete build
EXIT_USAGE = 2  # bad arguments, bad input files
EXIT_NETWORK = 4  # unreachable, refused or rate-limited server; bad credentials
EXIT_INTERRUPTED = 130


class BuilderError(Exception):
    """A failure the user can act on: what was expected, what was found, what to do next.

    Args:
        message: one or two sentences, naming the file, model or option.
        hint: what to do next; printed on a line of its own.
        exit_code: the exit code of the command that fails with this error.
    """

    def __init__(self, message: str, *, hint: str = "", exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[Any, ...]:
        # From a worker in another process, whatever a subclass takes to be made.
        return _as_it_was, (type(self), self.args, vars(self))


def _as_it_was(
    kind: type[BuilderError], args: tuple[Any, ...], state: dict[str, Any]
) -> BuilderError:
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error


class UsageError(BuilderError):
    """A wrong argument or input file: exits with 2."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, exit_code=EXIT_USAGE)


class NetworkError(BuilderError):
    """A server that cannot be reached, refuses, or asks to wait: exits with 4."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, exit_code=EXIT_NETWORK)
