"""Checkpoint files of every format, honest and hostile."""

from __future__ import annotations

import builtins
import gzip
import io
import os
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from builder.errors import BuilderError
from builder.sources import unpickle
from builder.sources.checkpoint import Checkpoint, read_checkpoint
from builder.sources.stored import Malformed

WEIGHTS = OrderedDict(
    weight=torch.arange(54, dtype=torch.float32).reshape(2, 3, 3, 3),
    half=torch.tensor([1.5, -2.0], dtype=torch.float16),
    count=torch.tensor(7),
    transposed=torch.arange(6.0).reshape(2, 3).t(),
    slice=torch.arange(100.0)[10:20:3],
    empty=torch.empty(0, 3),
    parameter=nn.Parameter(torch.ones(4)),
    flag=torch.tensor([True, False]),
)


def save(obj: Any, path: Path, *, legacy: bool = False) -> Path:
    torch.save(obj, path, _use_new_zipfile_serialization=not legacy)
    return path


def load_all(checkpoint: Checkpoint, tree: Any = None) -> dict[str, torch.Tensor]:
    return {k: checkpoint.load(v) for k, v in (tree or checkpoint.tree).items()}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(wanted) and all(
        torch.equal(found[k], wanted[k]) and found[k].dtype == wanted[k].dtype for k in wanted
    )


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


# Honest files


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_are_read_bit_for_bit(tmp_path: Path, legacy: bool) -> None:
    path = save(WEIGHTS, tmp_path / "w.pt", legacy=legacy)
    assert same(load_all(read_checkpoint(path)), WEIGHTS)


def test_a_legacy_file_saved_from_a_gpu_is_read(tmp_path: Path) -> None:
    """Locations such as 'cuda:0' and classes such as torch.cuda.FloatStorage are only words."""
    path = save({"w": torch.ones(3)}, tmp_path / "w.pt", legacy=True)
    data = path.read_bytes()
    assert b"ctorch\nFloatStorage" in data
    path.write_bytes(data.replace(b"ctorch\nFloatStorage", b"ctorch.cuda\nFloatStorage"))
    assert torch.equal(read_checkpoint(path).load(read_checkpoint(path).tree["w"]), torch.ones(3))


def test_pyautoattacks_example_equals_what_torch_reads() -> None:
    package = pytest.importorskip("pyautoattack")
    path = Path(package.__file__).parent / "examples" / "model_test.pt"
    wanted = torch.load(path, map_location="cpu", weights_only=True)
    assert same(load_all(read_checkpoint(path)), wanted)


def test_safetensors_are_recognised_by_content(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    wanted = {k: v.detach().contiguous() for k, v in WEIGHTS.items()}
    safetensors.save_file(wanted, tmp_path / "weights.bin", metadata={"format": "pt"})
    found = load_all(read_checkpoint(tmp_path / "weights.bin"))
    assert same({k: found[k] for k in wanted}, wanted)


def test_large_tensors_are_mapped_not_copied_and_the_file_is_never_changed(tmp_path: Path) -> None:
    path = save({"w": torch.zeros(1000)}, tmp_path / "w.pt")
    before = path.read_bytes()
    checkpoint = read_checkpoint(path)
    a, b = checkpoint.load(checkpoint.tree["w"]), checkpoint.load(checkpoint.tree["w"])
    assert a.data_ptr() == b.data_ptr()
    a.fill_(3)
    assert path.read_bytes() == before


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_checkpoint_inside_a_tar_is_read_in_place(
    tmp_path: Path, legacy: bool, zipped: bool
) -> None:
    inner = save({"state_dict": dict(WEIGHTS)}, tmp_path / "inner", legacy=legacy).read_bytes()
    member = "robustbench_X/version_0/checkpoints/epoch=1.ckpt"
    path = tar_of(
        tmp_path / "x.tar", {"robustbench_X/version_0/hparams.yaml": b"{}", member: inner}
    )
    if zipped:
        path.write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "inner").unlink()
    checkpoint = read_checkpoint(path)
    assert member in checkpoint.name
    assert same(load_all(checkpoint, checkpoint.tree["state_dict"]), dict(WEIGHTS))
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]


@pytest.fixture
def foreign() -> Any:
    """A module of somebody's training code, which is gone when the checkpoint is read."""
    module = types.ModuleType("their_training_code")
    source = """
import enum
class Hyper(dict): pass
class Callback: pass
class Slots:
    __slots__ = ("a",)
class Mode(enum.Enum):
    A = 1
class History(list): pass
def schedule(x): return x
"""
    exec(source, module.__dict__)
    for value in vars(module).values():
        if getattr(value, "__module__", None) == "builtins":
            value.__module__ = module.__name__
    for name in ("Hyper", "Callback", "Slots", "Mode", "History", "schedule"):
        getattr(module, name).__module__ = module.__name__
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_lightning_checkpoint_full_of_foreign_classes_is_read_without_them(
    tmp_path: Path, foreign: Any, legacy: bool
) -> None:
    import argparse
    import collections
    import functools
    import pathlib

    import numpy as np

    callback, slots = foreign.Callback(), foreign.Slots()
    callback.best, slots.a = np.float64(0.5), 3
    history = foreign.History([1, 2])
    hyper = foreign.Hyper(lr=0.1, mode=foreign.Mode.A)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1, momentum=0.9)
    checkpoint = {
        "pytorch-lightning_version": "1.5.10",
        "state_dict": dict(WEIGHTS),
        "callbacks": {foreign.Callback: callback, "slots": slots, "history": history},
        "hyper_parameters": hyper,
        "args": argparse.Namespace(dir=pathlib.PurePosixPath("/x"), eps=8 / 255),
        "schedule": functools.partial(foreign.schedule, 3),
        "counts": collections.defaultdict(int, a=1),
        "array": np.arange(3),
        "objects": {1, (2, "x")},
        "method": callback.__init__,
        "dtype": torch.float32,
        "size": torch.Size([1, 2]),
        "optimizer_states": [optimizer.state_dict()],
    }
    path = save(checkpoint, tmp_path / "epoch=1.ckpt", legacy=legacy)
    sys.modules.pop("their_training_code")
    found = read_checkpoint(path)
    assert "their_training_code" not in sys.modules
    assert same(load_all(found, found.tree["state_dict"]), dict(WEIGHTS))
    assert found.tree["hyper_parameters"]["lr"] == 0.1  # items of a foreign dictionary are kept


def test_a_state_dict_inside_a_foreign_dictionary_is_kept(tmp_path: Path, foreign: Any) -> None:
    path = save(foreign.Hyper(state_dict={"w": torch.ones(2)}), tmp_path / "w.pt")
    sys.modules.pop("their_training_code")
    found = read_checkpoint(path)
    assert torch.equal(found.load(found.tree["state_dict"]["w"]), torch.ones(2))


# Hostile files


class Call:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


def raw_call(module: str, name: str, argument: str) -> bytes:
    """A protocol 4 pickle that calls a global the interpreter need not have."""
    parts = [module, name, argument]
    texts = [b"\x8c" + bytes([len(t)]) + t.encode() for t in parts]
    return b"\x80\x04" + texts[0] + texts[1] + b"\x93" + texts[2] + b"\x85R."


GADGETS: dict[str, Callable[[str], Any]] = {
    "os.system": lambda mark: Call(os.system, f"touch {mark}"),
    "builtins.eval": lambda mark: Call(eval, f"open({mark!r}, 'w')"),
    "builtins.exec": lambda mark: Call(exec, f"open({mark!r}, 'w')"),
    "builtins.open": lambda mark: Call(open, mark, "w"),
    "builtins.__import__": lambda mark: Call(builtins.__import__, "antigravity"),
    "builtins.compile": lambda mark: Call(compile, "1", "x", "eval"),
    "subprocess.Popen": lambda mark: Call(__import__("subprocess").Popen, ["touch", mark]),
    "subprocess.getoutput": lambda mark: Call(__import__("subprocess").getoutput, f"touch {mark}"),
    "runpy.run_path": lambda mark: Call(__import__("runpy").run_path, mark),
    "importlib.import_module": lambda mark: Call(__import__("importlib").import_module, "this"),
    "shutil.rmtree": lambda mark: Call(__import__("shutil").rmtree, mark),
    "pickle.loads": lambda mark: Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {mark}"))),
    "torch.load": lambda mark: Call(torch.load, mark),
    "torch.hub.load": lambda mark: Call(torch.hub.load, "evil/repo", "model"),
    "torch.storage._load_from_bytes": lambda mark: Call(
        torch.storage._load_from_bytes, pickle.dumps(Call(os.system, f"touch {mark}"))
    ),
    "timeit.timeit": lambda mark: Call(__import__("timeit").timeit, f"open({mark!r}, 'w')"),
    "pdb.run": lambda mark: Call(__import__("pdb").run, f"open({mark!r}, 'w')"),
    "code.interact": lambda mark: Call(__import__("code").interact),
    "webbrowser.open": lambda mark: Call(__import__("webbrowser").open, mark),
    "socket.create_connection": lambda mark: Call(__import__("socket").create_connection, ("x", 1)),
    "ctypes.CDLL": lambda mark: Call(__import__("ctypes").CDLL, mark),
    "multiprocessing.Process": lambda mark: Call(__import__("multiprocessing").Process),
}


def containers(tmp_path: Path, gadget: Any) -> dict[str, Path]:
    """A gadget in every place a checkpoint has for it."""
    in_state = {"state_dict": {"w": torch.ones(2), "x": gadget}}
    inner = save({"epoch": 1, "state_dict": gadget}, tmp_path / "inner.pt").read_bytes()
    bare = tmp_path / "bare.pkl"
    bare.write_bytes(pickle.dumps(gadget))
    old = tmp_path / "protocol0.pkl"
    old.write_bytes(pickle.dumps(gadget, protocol=0))
    return {
        "zip": save(in_state, tmp_path / "zip.pt"),
        "legacy": save(in_state, tmp_path / "legacy.pt", legacy=True),
        "tar": tar_of(tmp_path / "archive.tar", {"a/b/epoch=3.ckpt": inner}),
        "bare": bare,
        "protocol 0": old,
    }


@pytest.mark.parametrize("name", GADGETS)
def test_a_pickle_that_would_run_code_does_not_and_the_message_says_which_and_why(
    tmp_path: Path, name: str
) -> None:
    mark = tmp_path / "marker"
    for where, path in containers(tmp_path, GADGETS[name](str(mark))).items():
        with pytest.raises(BuilderError) as error:
            read_checkpoint(path)
        said = str(error.value)
        assert name.rpartition(".")[2] in said, (where, said)  # modules have old and other names
        assert str(path) in said
        assert "can run code" in said
        assert "Nothing was run" in said
        assert not mark.exists(), where
        if where == "tar":
            assert "epoch=3.ckpt" in said


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("nt", "system"),
        ("__builtin__", "eval"),  # Python 2's names, which the unpickler would translate
        ("__builtin__", "execfile"),
        ("commands", "getoutput"),
        ("types", "FunctionType"),
        ("types", "CodeType"),
        ("torch.serialization", "os.system"),  # dotted names reach what a module imports
        ("numpy", "testing.__builtins__.eval"),
        ("collections", "_sys.modules"),
        ("collections.OrderedDict", "__init__.__globals__"),
        ("torch.jit", "load"),
        ("torch.utils.cpp_extension", "load_inline"),
        ("numpy.testing._private.utils", "runstring"),
        ("IPython.core", "interactiveshell"),
    ],
)
def test_detours_to_running_code_are_refused_too(tmp_path: Path, module: str, name: str) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(raw_call(module, name, "x"))
    with pytest.raises(BuilderError, match="refused"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "function",
    [getattr, setattr, __import__("operator").methodcaller, __import__("functools").partial],
    ids=lambda f: f.__name__,
)
def test_gadgets_that_only_pass_on_are_inert(tmp_path: Path, function: Any) -> None:
    """getattr and its like appear in honest files; they get stubs and so lead nowhere."""
    module = getattr(function, "__module__", "builtins")
    path = tmp_path / "w.pt"
    path.write_bytes(raw_call(module, function.__name__, "system"))
    with pytest.raises(BuilderError):
        read_checkpoint(path)
    data = raw_call(module, function.__name__, "system")
    found, _ = unpickle.load(data, "x", lambda pid: pid)
    # What getattr yields may be used as a class.
    assert (found if function is getattr else type(found)).__mro__[1] is unpickle.Inert


def test_nothing_a_pickle_reaches_can_be_altered_by_it() -> None:
    """BUILD sets attributes; what it gets its hands on is shared by all later files."""
    for target in (
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch\nfloat32\n",
        b"ctorch\nFloatStorage\n",
    ):
        state = b"(N(dX\x08\x00\x00\x00__call__K\x01stb."
        before = unpickle._allowed()["torch._utils._rebuild_tensor_v2"]._call
        with pytest.raises(Malformed):
            unpickle.load(b"\x80\x02" + target + state, "x", lambda pid: pid)
        assert unpickle._allowed()["torch._utils._rebuild_tensor_v2"]._call is before
    assert OrderedDict(a=1)["a"] == 1


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x80\x02\x82\x01.", "extension codes"),
        (b"\x80\x02\x83\x01\x01.", "extension codes"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "memo"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "damaged or truncated"),
        (b"\x80\x05\x97.", "damaged"),
        (b"\x80\x02" + b"]" * (unpickle.MAX_OPCODES + 1) + b".", "more than 4,000,000"),
        (b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.", "nests more than 100 tuples"),
        (b"\x80\x02K\x01K\x02R.", "damaged"),
        (b"\x80\x02Qabc.", "damaged"),
        (b"", "damaged or truncated"),
    ],
)
def test_pickles_that_harm_the_reader_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        unpickle.load(data, "x", lambda pid: pid)


def rebuild(
    storage_elements: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> Any:
    """A zip checkpoint's content whose one tensor lies as told in a storage of so many floats."""
    tensor = torch.zeros(storage_elements)

    class Liar:
        def __reduce__(self) -> Any:
            storage = torch.storage.TypedStorage(
                wrap_storage=tensor.untyped_storage(), dtype=torch.float32, _internal=True
            )
            hooks: OrderedDict[str, Any] = OrderedDict()
            return torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, hooks)

    return {"w": Liar()}


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (2,), (4,)),
        (-1, (1,), (1,)),
        (0, (4,), (-1,)),
        (0, (1 << 40,), (0,)),
        (0, (2, 2), (1,)),
        (0, (1,) * 17, (1,) * 17),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_tensor_outside_its_storage_is_refused(
    tmp_path: Path, offset: int, size: tuple[int, ...], stride: tuple[int, ...], legacy: bool
) -> None:
    path = save(rebuild(4, offset, size, stride), tmp_path / "w.pt", legacy=legacy)
    with pytest.raises(BuilderError, match="no usable checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "member",
    ["../../outside.ckpt", "/etc/cron.d/x.ckpt", "a/../../b.ckpt", "..\\..\\b.ckpt"],
)
def test_a_tar_member_that_points_outside_is_refused_and_nothing_is_written(
    tmp_path: Path, member: str
) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    inner = save({"w": torch.ones(2)}, tmp_path / "inner.pt").read_bytes()
    path = tar_of(folder / "x.tar", {"ok/a.ckpt": inner, member: inner})
    before = sorted(p for p in tmp_path.rglob("*"))
    with pytest.raises(BuilderError, match="points outside its folder") as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert sorted(p for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a.ckpt")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(BuilderError, match="is a link or a device"):
        read_checkpoint(path)


# Broken files


def test_no_prefix_of_a_checkpoint_is_taken_for_a_checkpoint(tmp_path: Path) -> None:
    weights = {"w": torch.arange(100.0), "b": torch.ones(3)}
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(weights, tmp_path / "s")
    whole = {
        "zip": save(weights, tmp_path / "z").read_bytes(),
        "legacy": save(weights, tmp_path / "l", legacy=True).read_bytes(),
        "safetensors": (tmp_path / "s").read_bytes(),
    }
    inner = {"a.ckpt": whole["zip"]}
    whole["tar"] = tar_of(tmp_path / "t", inner).read_bytes()[: 512 + len(whole["zip"])]
    path = tmp_path / "cut.pt"
    for kind, data in whole.items():
        for end in {0, 1, 7, 9, 100, 257, 512, 600, len(data) // 2, len(data) - 5, len(data) - 1}:
            path.write_bytes(data[: min(end, len(data) - 1)])
            with pytest.raises(BuilderError) as error:
                read_checkpoint(path)
            assert str(path) in str(error.value), (kind, end)
            assert "expected weights as torch.save writes them" in str(error.value)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), legacy=st.booleans())
def test_a_changed_byte_never_ends_in_anything_but_tensors_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, legacy: bool
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / f"fuzz{legacy}.pt"
    if not path.exists():
        save({"state_dict": dict(WEIGHTS), "epoch": 3}, path, legacy=legacy)
    data = bytearray(path.read_bytes())
    data[at % len(data)] = byte
    changed = folder / "changed.pt"
    changed.write_bytes(data)
    try:
        checkpoint = read_checkpoint(changed)
        for stored in unpickle_tensors(checkpoint.tree):
            checkpoint.load(stored).sum()
    except BuilderError:
        pass


def unpickle_tensors(tree: Any) -> list[Any]:
    from builder.sources.formats import stored_tensors

    return list(stored_tensors(tree))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html><title>Quota exceeded</title></html>", "it is a web page"),
        (b"\n\n <html>", "it is a web page"),
        (b"hello world, this is text", "begins with b'hello"),
        (os.urandom(0) + bytes(2000), "begins with"),
        (pickle.dumps({"a": 1}), "it is a pickle, but not one that torch.save writes"),
        (struct.pack("<Q", 20) + b'{"w": {"dtype": "F32"', "safetensors header is damaged"),
        (gzip.compress(b"")[:15], "gzip stream is damaged"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, data: bytes, found: str) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(data)
    with pytest.raises(BuilderError) as error:
        read_checkpoint(path)
    assert found in str(error.value)
    assert "expected weights" in str(error.value)


def test_a_zip_that_is_none_of_torchs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("photo.jpg", b"x")
    with pytest.raises(BuilderError, match=r"none of torch's \(it holds photo.jpg\)"):
        read_checkpoint(path)


def test_a_torchscript_program_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as z:
        for name in ("data.pkl", "constants.pkl", "code/x.py"):
            z.writestr(f"net/{name}", b"x")
    with pytest.raises(BuilderError, match="TorchScript"):
        read_checkpoint(path)


def test_a_tar_with_several_checkpoints_lists_them(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", {"a.ckpt": b"1", "b.ckpt": b"2"})
    with pytest.raises(BuilderError, match=r"2 checkpoints \('a.ckpt', 'b.ckpt'\)"):
        read_checkpoint(path)


def test_a_folder_or_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match="is a folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(BuilderError, match="No such file"):
        read_checkpoint(tmp_path / "missing.pt")
