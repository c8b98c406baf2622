"""Walk over a pickle's instructions without following them, to refuse what harms its reader."""

from __future__ import annotations

import pickletools
from typing import IO, Any

from builder.sources.stored import Malformed

MAX_BYTES = 128 << 20
"""Largest pickle that is read. That of a 1 GB checkpoint has about 0.1 MB, but arrays of NumPy
beside the weights are part of it."""
MAX_OPCODES = 4_000_000
"""Most instructions one pickle may hold: bounds its memory to about a GB."""
MAX_DEPTH = 100
"""Most levels of tuples in tuples (hashing one hashes what is in it: many more would overflow the C
stack), and of modules in modules."""


def _effects() -> dict[str, tuple[bool, int, int]]:
    """Instruction -> whether it takes all down to the last mark, how many values it takes (below
    that mark), and how many it leaves."""
    mark = pickletools.markobject
    effects = {}
    for op in pickletools.opcodes:
        before = op.stack_before
        takes = before.index(mark) if mark in before else len(before)
        effects[op.name] = mark in before, takes, len(op.stack_after)
    return effects


_EFFECTS = _effects()
_EXTENSIONS = frozenset({"EXT1", "EXT2", "EXT4"})


class TooLong(Malformed):
    """A pickle that does not end where it must."""


class _Bounded:
    """A stream that allocates no more for a text than its pickle may have bytes."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream, self._limit = stream, limit
        self.readline, self.tell = stream.readline, stream.tell

    def read(self, n: int) -> bytes:
        if n > self._limit:  # a damaged length: up to 2^64
            raise OverflowError(f"a value of {n:,} bytes")
        return self._stream.read(n)


def scan(stream: IO[bytes], limit: int) -> int:
    """Walk over one pickle's instructions without following them; return where it ends.

    The stream begins with the pickle. Of what is none, no more is read than shows that.

    Refuses what would harm the reader itself: extension codes (they bypass the look-up of
    names), memo numbers that make the unpickler reserve gigabytes, deeply nested tuples.

    Raises:
        TooLong: one that does not end before `limit` bytes.
        Malformed: no pickle, a truncated one, or one beyond the bounds above.
    """
    depths: list[int] = []  # of the values on the stack: how deep tuples are nested in each
    marks: list[int] = []
    memo = bytearray()  # 1 + the depth of what lies there; 0: nothing
    memoized = 0
    bounded: Any = _Bounded(stream, limit)  # genops takes whatever has its three methods
    try:
        for i, (opcode, arg, _) in enumerate(pickletools.genops(bounded)):
            name = opcode.name
            if i >= MAX_OPCODES:
                raise Malformed(f"its pickle has more than {MAX_OPCODES:,} instructions")
            if name in _EXTENSIONS:
                raise Malformed("its pickle uses extension codes, which no checkpoint does")
            if name.endswith("PUT") or name == "MEMOIZE":
                at = memoized if name == "MEMOIZE" else int(arg or 0)
                if at > 2 * MAX_OPCODES:
                    raise Malformed("its pickle numbers its memo beyond any need")
                if at >= len(memo):
                    memo.extend(bytes(at + 1 - len(memo) + len(memo) // 2))
                memoized += not memo[at]
                memo[at] = 1 + depths[-1]
            elif name.endswith("GET"):
                at = int(arg or 0)
                depths.append(memo[at] - 1 if at < len(memo) else 0)
            elif name == "MARK":
                marks.append(len(depths))
            elif name == "POP" and marks and marks[-1] == len(depths):
                marks.pop()
            elif name == "DUP":
                depths.append(depths[-1])
            else:
                to_mark, takes, leaves = _EFFECTS[name]
                start = (marks.pop() if to_mark else len(depths)) - takes
                if start < 0:
                    raise IndexError("it takes what is not there")
                depth = 0
                if name.startswith("TUPLE"):
                    depth = 1 + max(depths[start:], default=0)
                    if depth > MAX_DEPTH:
                        raise Malformed(f"its pickle nests more than {MAX_DEPTH} tuples")
                del depths[start:]
                depths += [depth] * leaves
    except (ValueError, OverflowError, UnicodeError, RecursionError, IndexError) as e:
        if stream.tell() >= limit:
            raise TooLong(f"its pickle has more than {limit:,} bytes, or is damaged") from e
        # genops reports its file-like argument's repr; the first line says what is wrong.
        raise Malformed(f"its pickle is damaged or truncated ({str(e).splitlines()[0]})") from None
    return stream.tell()
