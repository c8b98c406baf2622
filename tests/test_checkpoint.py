"""Checkpoint files of every format, honest and hostile."""

from __future__ import annotations

import builtins
import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from toy_networks import Tabled, Toy

from builder import open_release
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
    found, _ = unpickle.load(io.BytesIO(data), "x", lambda pid: pid)
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
            unpickle.load(io.BytesIO(b"\x80\x02" + target + state), "x", lambda pid: pid)
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
        (b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.", "nests more than 100 tuples"),
        (b"\x80\x02K\x01K\x02R.", "damaged"),
        (b"\x80\x02Qabc.", "damaged"),
        (b"", "damaged or truncated"),
    ],
)
def test_pickles_that_harm_the_reader_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        unpickle.load(io.BytesIO(data), "x", lambda pid: pid)


def test_a_pickle_with_more_instructions_than_memory_allows_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("builder.sources.instructions.MAX_OPCODES", 1000)
    with pytest.raises(Malformed, match="more than 1,000 instructions"):
        unpickle.load(io.BytesIO(b"\x80\x02" + b"]" * 1001 + b"."), "x", lambda pid: pid)


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
@example(at=14, byte=0x8D, legacy=True)  # a text whose length takes eight bytes: exabytes
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
        (gzip.compress(b"", mtime=0)[:15], "gzip stream is damaged"),
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


# What people have that used to be refused


def pickled_with(module: str, name: str, then: bytes = b"0") -> bytes:
    """Weights beside a global of any name: what a foreign pickle module writes for it."""
    data = pickle.dumps({"epoch": 3}, protocol=2)
    return data[:2] + f"c{module}\n{name}\n".encode() + then + data[2:]


HARMLESS = [
    ("dill._dill", "_create_function"),
    ("dill._dill", "_create_type"),
    ("dill._dill", "_import_module"),
    ("dill.dill", "_load_type"),
    ("dill._shims", "_delattr"),
    ("dill", "_dill"),
    ("__builtin__", "__main__"),
    ("__builtin__", "setattr"),
    ("builtins", "__dict__"),
    ("__main__", "__dict__"),
    ("cloudpickle.cloudpickle", "_make_function"),
    ("cloudpickle.cloudpickle", "subimport"),
    ("code.models", "Net"),
    ("code", "models.Net"),
    ("trace.resnet", "ResNet18"),
    ("site.nets", "Wide"),
    ("profile.model", "Net"),
    ("trace", "ResNet"),
]
HOSTILE = [
    ("dill", "loads"),
    ("dill", "load_session"),
    ("dill._dill", "loads"),
    ("dill._dill", "Unpickler"),
    ("dill.temp", "loadIO"),
    ("cloudpickle", "loads"),
    ("cloudpickle.cloudpickle", "pickle.loads"),
    ("code", "interact"),
    ("code", "InteractiveConsole"),
    ("code", "sys.modules"),
    ("trace", "Trace"),
    ("profile", "run"),
    ("site", "addsitedir"),
    ("pdb", "Pdb"),
    ("shutil", "rmtree"),
    ("socket", "create_connection"),
    ("marshal", "loads"),
    ("os", "__dict__"),
    ("numpy", "__class__.__dict__"),
]


@pytest.mark.parametrize(("module", "name"), HARMLESS)
def test_names_that_honest_files_hold_are_stubs_and_lead_nowhere(module: str, name: str) -> None:
    found, _ = unpickle.load(io.BytesIO(pickled_with(module, name)), "x", lambda pid: pid)
    assert found == {"epoch": 3}
    data = b"\x80\x02" + f"c{module}\n{name}\n".encode() + b"(K\x01K\x02tR."
    called, _ = unpickle.load(io.BytesIO(data), "x", lambda pid: pid)
    inert = called if isinstance(called, type) else type(called)
    assert issubclass(inert, unpickle.Inert)


@pytest.mark.parametrize(("module", "name"), HOSTILE)
def test_names_beside_them_that_run_code_stay_refused(module: str, name: str) -> None:
    with pytest.raises(BuilderError, match="can run code"):
        unpickle.load(io.BytesIO(pickled_with(module, name)), "x", lambda pid: pid)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_dill_pickled_checkpoint_is_read_and_nothing_of_it_runs(
    tmp_path: Path, legacy: bool
) -> None:
    pytest.importorskip("dill")
    mark = tmp_path / "marker"
    source = f"""
import collections, dill, enum, torch
class Config:
    class Inner: pass
    def __init__(self): self.inner = Config.Inner()
    def __setstate__(self, state): open({str(mark)!r}, "w").close()
class Mode(enum.Enum): A = 1
Pair = collections.namedtuple("Pair", "a b")
def scale(x): return (lambda y: torch.sin(y) * x)
torch.save({{
    "state_dict": {{"w": torch.arange(3.0)}},
    "args": [Config(), Config, Mode.A, Pair(1, 2), scale(3), float, Config().__init__],
    "schedule": {{"lr_lambdas": [lambda t: 0.1 ** (t // 50)]}},
}}, {str(tmp_path / "w.pt")!r}, pickle_module=dill, _use_new_zipfile_serialization={not legacy})
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", source], check=True)
    found = read_checkpoint(tmp_path / "w.pt")
    assert torch.equal(found.load(found.tree["state_dict"]["w"]), torch.arange(3.0))
    assert not mark.exists()


def test_a_hidden_method_of_a_dictionary_harms_nobody(tmp_path: Path, foreign: Any) -> None:
    """BUILD gives an OrderedDict attributes, as torch does with `_metadata`."""

    class Hides:
        def __init__(self, kind: type) -> None:
            self.kind = kind

        def __reduce__(self) -> Any:
            hidden = dict.fromkeys(("values", "items", "keys", "get", "is_module"), 3)
            return self.kind, (), hidden, None, iter([("w", torch.ones(2))])

    for kind in (OrderedDict, foreign.Hyper):
        path = save({"state_dict": Hides(kind)}, tmp_path / "w.pt")
        found = read_checkpoint(path)
        assert torch.equal(found.load(found.tree["state_dict"]["w"]), torch.ones(2))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "log",
    [
        [(i, 0.1 * i, 0.2) for i in range(60_000)],
        [{"step": i, "pair": ((i, i), "train")} for i in range(20_000)],
    ],
)
def test_a_long_training_log_beside_the_weights_is_read(
    tmp_path: Path, log: Any, legacy: bool
) -> None:
    found = read_checkpoint(save({"w": torch.ones(2), "log": log}, tmp_path / "w", legacy=legacy))
    assert torch.equal(found.load(found.tree["w"]), torch.ones(2))


def test_a_large_array_beside_the_weights_is_read(tmp_path: Path) -> None:
    import numpy as np

    array = np.random.default_rng(0).integers(128, 256, 40_000_000, dtype=np.uint8)
    found = read_checkpoint(save({"w": torch.ones(2), "delta": array}, tmp_path / "w.pt"))
    assert torch.equal(found.load(found.tree["w"]), torch.ones(2))


@pytest.mark.parametrize("opcode", [b"\x85", b"0Nh\x00\x86q\x00", b"0h\x00\x85\x94"])
def test_nested_tuples_are_refused_however_they_nest(opcode: bytes) -> None:
    """On the stack, through numbered memo entries, and through consecutive ones."""
    if opcode.endswith(b"\x94"):
        steps = b"".join(b"0h" + bytes([i]) + b"\x85\x94" for i in range(200))
        data = b"\x80\x04)\x94" + steps + b"."
    else:
        data = b"\x80\x02)q\x00" + opcode * 200 + b"."
    with pytest.raises(Malformed, match="nests more than 100 tuples"):
        unpickle.load(io.BytesIO(data), "x", lambda pid: pid)


def zip_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as z:
        for name, data in members.items():
            z.writestr(name, data)
    return path


def test_every_way_a_checkpoint_is_packed_is_unpacked(tmp_path: Path) -> None:
    import bz2
    import lzma

    inner = save({"state_dict": dict(WEIGHTS)}, tmp_path / "inner").read_bytes()
    mac = {"._w.pth": b"\0\5\x16\7", "w.pth": inner, "__MACOSX/._w.pth": b"\0\5\x16\7"}
    with zipfile.ZipFile(tmp_path / "inner") as z:
        zip_of(tmp_path / "again.pth", {n: z.read(n) for n in z.namelist()})
    for name, pack in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
        (tmp_path / f"w.pth.{name}").write_bytes(pack(inner))
        packed = tar_of(tmp_path / "w.tar", {"README.md": b"x", **mac}).read_bytes()
        (tmp_path / f"w.tar.{name}").write_bytes(pack(packed))
    zip_of(tmp_path / "deflated.zip", mac)
    zip_of(tmp_path / "stored.zip", {"a/b.pth": inner}, zipfile.ZIP_STORED)
    zip_of(tmp_path / "tar.zip", {"w.tar": (tmp_path / "w.tar").read_bytes()})
    with tarfile.open(tmp_path / "v7.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(tmp_path / "inner", "w.pth")
    old = bytearray((tmp_path / "v7.tar").read_bytes())
    old[257:265] = bytes(8)  # before 1988 there was no magic; the sum is taken anew
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old[:512])
    (tmp_path / "v7.tar").write_bytes(old)
    (tmp_path / "inner").unlink()
    before = sorted(tmp_path.iterdir())
    for path in before:
        found = read_checkpoint(path)
        assert same(load_all(found, found.tree["state_dict"]), dict(WEIGHTS)), path
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_or_endless_packing_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = save({"w": torch.rand(10_000)}, tmp_path / "inner").read_bytes()
    path = zip_of(tmp_path / "w.zip", {"w.pth": inner})
    data = bytearray(path.read_bytes())
    data[2000] ^= 255
    path.write_bytes(data)
    with pytest.raises(BuilderError, match="zip entry is damaged"):
        read_checkpoint(path)
    for _ in range(6):
        inner = gzip.compress(inner)
    path.write_bytes(inner)
    with pytest.raises(BuilderError, match="packed more than 4 times over"):
        read_checkpoint(path)
    monkeypatch.setattr("builder.sources.packing.MAX_FILE_BYTES", 1 << 16)
    path.write_bytes(gzip.compress(bytes(1 << 20)))
    with pytest.raises(BuilderError, match="unpacks to more than"):
        read_checkpoint(path)


def test_a_flipped_bit_of_a_zip_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = save({"w": torch.zeros(1000)}, tmp_path / "w.pt")
    assert read_checkpoint(path).damaged_entry() is None
    data = bytearray(path.read_bytes())
    at = read_checkpoint(path)._extents["0"][0]
    data[at + 100] ^= 1
    path.write_bytes(data)
    damaged = read_checkpoint(path).damaged_entry()
    assert damaged is not None and damaged.endswith("data/0")
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"w": torch.zeros(1000)}, tmp_path / "unchecked.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(path).damaged_entry() is None
    assert read_checkpoint(save({"w": torch.zeros(9)}, path, legacy=True)).damaged_entry() is None


FOREIGN: dict[str, tuple[bytes, str, str]] = {
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "a Git LFS pointer",
        "git lfs pull",
    ),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(600), "an HDF5 file", "state_dict()"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(600), "a GGUF file", "state_dict()"),
    "onnx": (b"\x08\x08\x12\x07pytorch" + bytes(600), "an ONNX model", "that was exported"),
    "tensorflow": (bytes(40) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "TensorFlow", "state_dict()"),
    "saved model": (b"\x08\x01\x12\xff\x01" + bytes(600), "a SavedModel of TensorFlow", ""),
    "npy": (b"\x93NUMPY\x01\0" + bytes(600), "one NumPy array", "state_dict()"),
    "csv": (b"step,loss\n1,0.5\n2,0.4\n" * 100, "plain text", "address of the weights"),
    "json": (b'{"learning_rate": 0.1}', "a JSON file", "address of the weights"),
    "index": (
        b'{"metadata": {"total_size": 9}, "weight_map": {"w": "model-00001-of-00002.bin"}}',
        "a checkpoint in several files (shards)",
        "join their dictionaries",
    ),
    "letters cut": ("é".encode() * 2000, "plain text", ""),
    "zeros": (bytes(4000), "zeros, as in a file whose download", ""),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(99), "a 7z archive", "unpack it"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_something_else_is_named_with_what_to_do(tmp_path: Path, kind: str) -> None:
    data, found, hint = FOREIGN[kind]
    path = tmp_path / "w.bin"
    path.write_bytes(data)
    with pytest.raises(BuilderError) as error:
        read_checkpoint(path)
    assert found in str(error.value)
    assert hint in error.value.hint


def test_zips_of_something_else_are_named(tmp_path: Path) -> None:
    for members, said in (
        ({"config.json": b"{}", "model.weights.h5": b"x"}, "a model of Keras"),
        ({"w.npy": b"x", "b.npy": b"x"}, "NumPy arrays"),
        ({"a.pth": b"x", "b.pth": b"x"}, r"2 checkpoints \('a.pth', 'b.pth'\)"),
        ({"../a.pth": b"x"}, "points outside its folder"),
    ):
        with pytest.raises(BuilderError, match=said):
            read_checkpoint(zip_of(tmp_path / "w.zip", members))


PEAK = """
import resource, subprocess, sys
command = [sys.executable, "-m", "builder", *sys.argv[1:]]
done = subprocess.run(command, capture_output=True, text=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, done.stderr, sep="\\n")
"""


def peak_of_a_build(folder: Path, files: list[str], network: str = "Toy") -> tuple[int, str]:
    """Largest resident memory of a build of one model per file, and what it says."""
    constructor = f"toy_networks:{network}"
    lines = [f"net{i},cifar10,true,Toy,{constructor},{name}" for i, name in enumerate(files)]
    header = "network,dataset,robust,architecture,constructor,checkpoint"
    (folder / "c.csv").write_text("\n".join([header, *lines]))
    options = ["build", "--cohort", "c.csv", "--out", "out", "--fresh", "--jobs", "1", "--quiet"]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *options],
        capture_output=True, text=True, check=True, cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    peak, _, said = done.stdout.partition("\n")
    return int(peak), said


@pytest.mark.slow
def test_a_file_of_10_gb_that_is_no_checkpoint_took_hundreds_of_megabytes(tmp_path: Path) -> None:
    beginnings = {kind: data[:600] for kind, (data, *_) in FOREIGN.items() if kind != "tensorflow"}
    beginnings |= {
        "nothing": b"",
        "pickle": b"\x80\x02",
        "global": b"cmodule",
        "binary": b"\x80\x04\x8e" + struct.pack("<Q", 9 << 30),
        "safetensors": struct.pack("<Q", 90 << 20) + b"{",
        "torch zip": b"PK\x03\x04",
        "gzip": b"\x1f\x8b\x08",
        "bzip2": b"BZh9",
        "xz": b"\xfd7zXZ\0",
        "legacy": save({"w": torch.rand(9)}, tmp_path / "w", legacy=True).read_bytes(),
        "tar": tar_of(tmp_path / "t", {"README": b"x"}).read_bytes(),
    }
    files = [f"{kind.replace(' ', '_')}.bin" for kind in beginnings]
    for name, beginning in zip(files, beginnings.values(), strict=True):
        (tmp_path / name).write_bytes(beginning)
        os.truncate(tmp_path / name, 10 << 30)
    least, said = peak_of_a_build(tmp_path, [f"none{i}.bin" for i in range(len(files))])
    assert said.count("there is no checkpoint") == len(files)
    peak, said = peak_of_a_build(tmp_path, files)
    assert all(f"{name} is " in said for name in files), said
    assert peak < least + (32 << 20), f"{(peak - least) >> 20} MB more"


@pytest.fixture
def beyond_4_gib(tmp_path: Path) -> Iterator[tuple[Path, dict[str, torch.Tensor]]]:
    """torch's zip file of a `Tabled`, whose table is a hole in the file, and its other weights."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta"):
        model = Tabled()
    state = model.state_dict()
    weights = {k: torch.rand(t.shape).to(t.dtype) for k, t in state.items() if k != "table.weight"}
    table = torch.empty(state["table.weight"].shape)  # memory that nothing touches
    path = tmp_path / "tabled.pt"
    with torch.serialization.skip_data():
        torch.save({k: weights.get(k, table) for k in state}, path)
    with FakeTensorMode():
        places = torch.load(path)
    with path.open("r+b") as f:
        for name, tensor in weights.items():
            f.seek(places[name].untyped_storage()._checkpoint_offset)
            f.write(tensor.numpy().tobytes())
    yield path, weights
    path.unlink()


@pytest.mark.slow
def test_weights_beyond_4_gib_were_read_from_elsewhere_or_all_of_the_file_was(
    tmp_path: Path, beyond_4_gib: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    path, weights = beyond_4_gib
    assert path.stat().st_size > 4.4e9
    checkpoint = read_checkpoint(path)
    begins = {k: checkpoint._extents[t.storage.key][0] for k, t in checkpoint.tree.items()}
    assert begins["grouped.weight"] < 1 << 20 and begins["last.weight"] > 1 << 32
    assert same(load_all(checkpoint, {k: checkpoint.tree[k] for k in weights}), weights)

    save(Toy().state_dict(), tmp_path / "small.pt")
    least, _ = peak_of_a_build(tmp_path, ["small.pt"])
    peak, said = peak_of_a_build(tmp_path, [path.name], "Tabled")
    assert "1 models" in said, said
    release = open_release(tmp_path / "out")
    for layer in ("conv1", "grouped", "last"):
        found = release.weight(release.model_ids[0], layer)
        assert found.tobytes() == weights[f"{layer}.weight"].numpy().tobytes(), layer
    assert peak < least + (64 << 20), f"{(peak - least) >> 20} MB more"


def test_a_folder_of_shards_is_named(tmp_path: Path) -> None:
    from test_sources import fetch, spec

    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    for i in (1, 2):
        save({"w": torch.ones(2)}, tmp_path / f"model-0000{i}-of-00002.safetensors")
    with pytest.raises(BuilderError, match="several files") as error:
        fetch(spec(str(tmp_path)), tmp_path)
    assert "join their dictionaries" in error.value.hint
