"""Read the pickle inside a checkpoint without running anything it names.

A pickle is a small program. Its only door to the outside is looking up globals by name, so this
module opens the door a crack: dictionaries, and the handful of torch functions that put a tensor
together, which are replaced by ours. They yield a description of a tensor (`StoredTensor`), not a
tensor; nothing of torch is ever called. Every other name becomes an inert stub, so that files
which also carry an optimizer, callbacks or hyperparameters of foreign classes can be read, and
names whose only use is to run code are refused (refused.py).

The stub of a whole pickled network keeps the parameters, buffers and submodules that its state
holds: the weights of `torch.save(model)` are read without the class that made them.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, NoReturn

from builder.sources.digests import WrongContent
from builder.sources.instructions import MAX_BYTES, MAX_DEPTH, scan
from builder.sources.refused import runs_code
from builder.sources.stored import Malformed, Storage, StoredTensor, Unreadable

MAX_MODULES = 100_000
"""Most modules and tensors of one pickled network, each counted as often as it is named."""


class _Dict(dict[Any, Any]):
    """In place of OrderedDict: the attributes that a pickle gives it are dropped, for they could
    hide its methods."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class Inert(dict[Any, Any]):
    """Stands in for an object of a foreign class. Takes any arguments, state and items; keeps
    items set by key (a foreign dictionary may hold the state dict), and of a module of torch its
    parameters, buffers and submodules by name; does nothing else.

    Attributes:
        is_module: whether its state is that of a torch.nn.Module.
    """

    is_module = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return dict.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return Inert()

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict) and state.keys() >= {"_parameters", "_buffers", "_modules"}:
            self.is_module = True
            for kind in ("_parameters", "_buffers", "_modules"):
                if isinstance(state[kind], dict):
                    dict.update(self, state[kind])

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


def named_tensors(module: Inert) -> dict[str, Any]:
    """The state dict of a whole pickled network: dotted names -> StoredTensor or Unreadable.

    Raises:
        Malformed: more modules than any network has.
    """
    found: dict[str, Any] = {}
    todo: list[tuple[str, int, Inert]] = [("", 0, module)]
    visits = 0
    while todo:
        prefix, depth, node = todo.pop()
        inner: list[tuple[str, int, Inert]] = []
        for name, value in dict.items(node):
            if isinstance(value, StoredTensor | Unreadable):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, Inert) and value.is_module:
                inner.append((f"{prefix}{name}.", depth + 1, value))
        todo += reversed(inner)  # depth first, as torch orders a state dict
        visits += 1 + len(node)
        if visits > MAX_MODULES or depth > MAX_DEPTH:
            raise Malformed("its network has more modules than any network")
    return found


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    if isinstance(storage, Unreadable):
        return storage
    if not isinstance(storage, Storage):
        raise Malformed("a tensor without storage")
    if str(storage.dtype).startswith("torch.q"):
        return Unreadable("a quantised tensor")
    return StoredTensor(storage, storage.dtype, offset, tuple(size), tuple(stride))


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    """As _tensor; the storage is untyped bytes and the element type is the third of `rest`."""
    import torch

    dtype = rest[2] if len(rest) > 2 else None
    if isinstance(dtype, type) and issubclass(dtype, Inert):
        return Unreadable(f"a tensor of {dtype.__name__}, which this torch does not know")
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


def _itself(data: Any, *_: Any) -> Any:
    """A parameter, or a tensor moved to another device: the tensor it is made of."""
    if not isinstance(data, StoredTensor | Unreadable):
        raise Malformed("a parameter without a tensor")
    return data


def _subclass(make: Any, _: Any, args: Any, *state: Any) -> Any:
    """A tensor of a subclass: the plain tensor it is made of."""
    return make(*args)


def _unreadable(what: str) -> _Function:
    return _Function(lambda *_: Unreadable(what))


def _stub(name: str) -> type[Inert]:
    return type(name, (Inert,), {})


# They return classes, which instructions of the pickle then expect to be classes.
_MAKE_CLASSES = (
    *("__builtin__.getattr", "builtins.getattr", "__builtin__.type", "builtins.type"),
    *("collections.namedtuple", "types.new_class"),
    *(f"dill.{m}._{f}" for m in ("_dill", "dill") for f in ("create_type", "load_type")),
    *(f"dill.{m}._{f}" for m in ("_dill", "dill") for f in ("get_attr", "create_namedtuple")),
    *(
        f"cloudpickle.cloudpickle._{f}"
        for f in ("make_skeleton_class", "make_skeleton_enum", "builtin_type")
    ),
)


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
        "QInt8": torch.qint8,
        "QUInt8": torch.quint8,
        "QInt32": torch.qint32,
        "QUInt4x2": torch.quint4x2,
        "QUInt2x4": torch.quint2x4,
        "Untyped": torch.uint8,
    }
    for name, dtype in storages.items():
        for module in ("torch", "torch.cuda", "torch.storage"):
            allowed[f"{module}.{name}Storage"] = dtype
    for name in _MAKE_CLASSES:
        allowed[name] = _Function(lambda *_, name=name: _stub(name))
    sparse, wrapped = _unreadable("a sparse tensor"), _unreadable("a tensor wrapped in others")
    return allowed | {
        "collections.OrderedDict": _Dict,
        "torch._utils._rebuild_tensor": _Function(_tensor),
        "torch._utils._rebuild_tensor_v2": _Function(_tensor),
        "torch._utils._rebuild_tensor_v3": _Function(_tensor_v3),
        "torch._utils._rebuild_parameter": _Function(_itself),
        "torch._utils._rebuild_parameter_with_state": _Function(_itself),
        "torch._utils._rebuild_device_tensor_from_cpu_tensor": _Function(_itself),
        "torch._tensor._rebuild_from_type": _Function(_subclass),
        "torch._tensor._rebuild_from_type_v2": _Function(_subclass),
        "torch._utils._rebuild_qtensor": _unreadable("a quantised tensor"),
        "torch._utils._rebuild_sparse_tensor": sparse,
        "torch._utils._rebuild_sparse_csr_tensor": sparse,
        "torch._utils._rebuild_nested_tensor": _unreadable("a nested tensor"),
        "torch._utils._rebuild_meta_tensor_no_storage": _unreadable("a tensor without numbers"),
        "torch._utils._rebuild_wrapper_subclass": wrapped,
        "torch._utils._rebuild_device_tensor_from_numpy": wrapped,
        "torch._utils._rebuild_xla_tensor": wrapped,
    }


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, where: str, storage: Callable[[tuple[Any, ...]], Any]) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._where = where
        self._storage = storage
        self._allowed: Mapping[str, Any] = _allowed()
        self._stubs: dict[str, type[Inert]] = {}

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
            self._stubs[full] = _stub(full)
        return self._stubs[full]

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or not pid:
            raise Malformed("a persistent id of a kind torch never writes")
        return self._storage(pid)


def load(
    stream: IO[bytes],
    where: str,
    storage: Callable[[tuple[Any, ...]], Any],
    limit: int = MAX_BYTES,
) -> tuple[Any, int]:
    """The object of one pickle: containers, numbers, text, StoredTensor and inert stubs; and the
    number of its bytes.

    Args:
        stream: the pickle, to its STOP instruction or longer; seekable.
        where: the file's name for messages.
        storage: maps a persistent id (a tuple) to a Storage.
        limit: most bytes it may have.

    Raises:
        TooLong: a pickle that does not end before `limit`.
        Malformed: no pickle that a checkpoint may hold.
        WrongContent: the pickle names a global that exists to run code.
    """
    length = scan(stream, limit)
    stream.seek(0)
    try:
        return _Unpickler(stream.read(length), where, storage).load(), length
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
