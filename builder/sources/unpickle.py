"""Read the pickle inside a checkpoint without running anything it names.

A pickle is a small program. Its only door to the outside is looking up globals by name, so this
module opens the door a crack: OrderedDict, and the handful of torch functions that put a tensor
together, which are replaced by ours. They yield a description of a tensor (`StoredTensor`), not a
tensor; nothing of torch is ever called. Every other name becomes an inert stub, so that files
which also carry an optimizer, callbacks or hyperparameters of foreign classes can be read, and
names whose only use is to run code are refused.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from builder.sources.digests import WrongContent

MAX_BYTES = 32 << 20
"""Largest pickle that is read; that of a 1 GB checkpoint has about 0.1 MB."""
MAX_OPCODES = 2_000_000
"""Most instructions one pickle may hold: bounds its memory to a few hundred MB."""
MAX_TUPLES = 50_000
"""Most tuples one pickle may build, about four per tensor. More of them, nested, would overflow
the C stack when they are hashed."""
MAX_DIMENSIONS = 16


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Stubs make every unknown name harmless; these are refused all the same, since a file that asks
# for them is an attack (or broken) and its user should hear of it. Python 2's names included.
# Not here, for honest files name them: copyreg, functools, operator, types, getattr.
_REFUSED_ANYWHERE = _words("os posix nt sys subprocess ctypes importlib runpy")
_REFUSED_MODULES = _words(
    "posixpath ntpath commands popen2 pty pexpect code codeop imp pkgutil zipimport _ctypes cffi "
    "multiprocessing concurrent threading _thread thread socket _socket socketserver ssl asyncio "
    "urllib urllib2 urllib3 http httplib requests ftplib smtplib xmlrpc telnetlib webbrowser "
    "antigravity shutil tempfile fileinput mmap pickle _pickle cPickle cloudpickle dill joblib "
    "shelve marshal pdb bdb trace profile cProfile timeit doctest pip ensurepip venv site "
    "setuptools distutils pydoc sqlite3 tarfile zipfile IPython"
)
_REFUSED_BUILTINS = _words(
    "eval exec execfile compile open file __import__ input raw_input breakpoint exit quit help "
    "globals locals vars setattr delattr apply reload"
)
_REFUSED_NAMES = _words(
    "torch.load torch.save torch.serialization.load torch.storage._load_from_bytes numpy.load "
    "numpy.save io.open _io.open io.FileIO _io.FileIO io.open_code codecs.open types.CodeType "
    "types.FunctionType pandas.read_pickle"
)
_REFUSED_PREFIXES = tuple(
    _words(
        "torch.hub. torch.package. torch.jit. torch.ops. torch.utils.cpp_extension. "
        "torch.distributed.rpc. torch._dynamo. torch._inductor. numpy.testing. numpy.f2py. "
        "numpy.distutils. numpy.ctypeslib."
    )
)
_EXTENSIONS = frozenset({"EXT1", "EXT2", "EXT4"})
_BUILTINS = ("builtins", "__builtin__")


class Malformed(Exception):
    """The bytes are no pickle that a checkpoint may hold; the text says why."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A flat run of `numel` elements of `dtype`, `skip` elements into the bytes called `key`."""

    key: str
    dtype: Any  # torch.dtype
    numel: int
    skip: int = 0

    def __setstate__(self, state: object) -> NoReturn:
        raise Malformed("it alters a storage")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a checkpoint describes it; its numbers are still in the file.

    `offset` and `stride` count elements, as in torch. Negative or overlapping layouts, and those
    that leave the storage, are refused at construction.
    """

    storage: Storage
    dtype: Any  # torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.stride) or len(self.shape) > MAX_DIMENSIONS:
            raise Malformed("a tensor's shape and stride differ in length, or are too long")
        numbers = (self.offset, *self.shape, *self.stride)
        if any(type(n) is not int or n < 0 for n in numbers):
            raise Malformed("a tensor's shape, stride or offset is no natural number")
        # Sizes that repeat elements (stride 0) would let a small file ask for any memory.
        if self.numel > self.storage.numel:
            raise Malformed("a tensor holds more elements than its storage")
        last = sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        if self.numel and self.offset + last >= self.storage.numel:
            raise Malformed("a tensor reaches beyond its storage")

    @property
    def numel(self) -> int:
        product = 1
        for n in self.shape:
            product *= n
        return product

    def __setstate__(self, state: object) -> NoReturn:
        raise Malformed("it alters a tensor")


class _Inert(dict[Any, Any]):
    """Stands in for an object of a foreign class. Takes any arguments, state and items; keeps
    items set by key (a foreign dictionary may hold the state dict), does nothing else."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return dict.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Inert:
        return _Inert()

    def __setstate__(self, state: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    add = append

    def extend(self, items: Iterable[object]) -> None:
        pass

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


class _Function:
    """A function a pickle may call but not alter (BUILD could set attributes of a plain one)."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: object) -> NoReturn:
        raise Malformed("it alters a function")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise Malformed("a tensor without storage")
    return StoredTensor(storage, storage.dtype, offset, tuple(size), tuple(stride))


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor:
    """As _tensor; the storage is untyped bytes and the element type is the fourth of `rest`."""
    import torch

    dtype = rest[2] if len(rest) > 2 else None
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise Malformed("a tensor without storage or element type")
    width = dtype.itemsize
    typed = Storage(
        storage.key,
        dtype,
        storage.numel * storage.dtype.itemsize // width,
        storage.skip * storage.dtype.itemsize // width,
    )
    return StoredTensor(typed, dtype, offset, tuple(size), tuple(stride))


def _parameter(data: Any, *_: Any) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise Malformed("a parameter without a tensor")
    return data


def _allowed() -> dict[str, Any]:
    """Every global a pickle gets for real, by its full name."""
    import torch

    dtypes = {d for d in vars(torch).values() if isinstance(d, torch.dtype)}
    allowed: dict[str, Any] = {str(d): d for d in dtypes}
    storages = {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "ComplexFloat": torch.complex64,
        "ComplexDouble": torch.complex128,
        "Untyped": torch.uint8,
    }
    for name, dtype in storages.items():
        for module in ("torch", "torch.cuda", "torch.storage"):
            allowed[f"{module}.{name}Storage"] = dtype
    return allowed | {
        "collections.OrderedDict": OrderedDict,
        "torch._utils._rebuild_tensor": _Function(_tensor),
        "torch._utils._rebuild_tensor_v2": _Function(_tensor),
        "torch._utils._rebuild_tensor_v3": _Function(_tensor_v3),
        "torch._utils._rebuild_parameter": _Function(_parameter),
        "torch._utils._rebuild_parameter_with_state": _Function(_parameter),
    }


def runs_code(module: str, name: str) -> bool:
    """Whether a global exists to run code, load more pickles, or reach files or the network."""
    full = f"{module}.{name}"
    parts = full.split(".")
    return (
        parts[0] in _REFUSED_MODULES
        or not _REFUSED_ANYWHERE.isdisjoint(p.lstrip("_") for p in parts)
        or (parts[0] in _BUILTINS and parts[1] in _REFUSED_BUILTINS)
        or any(p.startswith("__") and p.endswith("__") for p in parts[1:])
        or full in _REFUSED_NAMES
        or full.startswith(_REFUSED_PREFIXES)
    )


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, where: str, storage: Callable[[tuple[Any, ...]], Any]) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._where = where
        self._storage = storage
        self._allowed: Mapping[str, Any] = _allowed()
        self._stubs: dict[str, type[_Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self._allowed:
            return self._allowed[full]
        if runs_code(module, name):
            raise WrongContent(
                f"{self._where}: refused. Loading this checkpoint asks for {full!r}, which can run "
                "code; weights never need it. Nothing was run.",
                hint="do not open this file with torch.load or pickle; get the weights from a "
                "source you trust, best as safetensors.",
            )
        if full not in self._stubs:
            self._stubs[full] = type("Inert", (_Inert,), {})
        return self._stubs[full]

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or not pid:
            raise Malformed("a persistent id of a kind torch never writes")
        return self._storage(pid)


def scan(data: bytes) -> int:
    """Walk over one pickle's instructions without following them; return where it ends.

    Refuses what would harm the reader itself: extension codes (they bypass the look-up of
    names) and memo numbers that make the unpickler reserve gigabytes.

    Raises:
        Malformed: no pickle, a truncated one, or one beyond the bounds above.
    """
    stream = io.BytesIO(data)
    tuples = 0
    try:
        for i, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
            if i >= MAX_OPCODES:
                raise Malformed(f"its pickle has more than {MAX_OPCODES:,} instructions")
            tuples += opcode.name.startswith("TUPLE")
            if tuples > MAX_TUPLES:
                raise Malformed(f"its pickle builds more than {MAX_TUPLES:,} tuples")
            if opcode.name in _EXTENSIONS:
                raise Malformed("its pickle uses extension codes, which no checkpoint does")
            if opcode.name.endswith("PUT") and int(arg or 0) > 2 * MAX_OPCODES:
                raise Malformed("its pickle numbers its memo beyond any need")
    except (ValueError, OverflowError, UnicodeError, RecursionError) as e:
        # genops reports its file-like argument's repr; the first line says what is wrong.
        raise Malformed(f"its pickle is damaged or truncated ({str(e).splitlines()[0]})") from None
    return stream.tell()


def load(data: bytes, where: str, storage: Callable[[tuple[Any, ...]], Any]) -> Any:
    """The object of one pickle: containers, numbers, text, StoredTensor and inert stubs.

    Args:
        data: the pickle, to its STOP instruction or longer.
        where: the file's name for messages.
        storage: maps a persistent id (a tuple) to a Storage.

    Raises:
        Malformed: no pickle that a checkpoint may hold.
        WrongContent: the pickle names a global that exists to run code.
    """
    scan(data)
    try:
        return _Unpickler(data, where, storage).load()
    except (Malformed, WrongContent):
        raise
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ) as e:
        # What the unpickler raises on instructions that do not fit each other.
        raise Malformed(f"its pickle is damaged ({type(e).__name__}: {e})") from None
