"""Other people's code: what it sees, and that nothing it does reaches further than its result."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from builder.errors import BuilderError, UsageError
from builder.sources.constructors import construct, construct_on_meta
from builder.sources.guest import blamed, guest, prints_to_stderr

NET = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
    def forward(self, x):
        return self.conv(x)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module `guest_net` in it; modules of it are forgotten after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [m for m in sys.modules if m.startswith("guest_")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    (tmp_path / "guest_net.py").write_text(NET)
    return tmp_path


def settings() -> list[object]:
    return [
        *(torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()),
        *(torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()),
        *(Path.cwd(), sys.argv, sys.stdout, sys.stderr, sys.getrecursionlimit()),
        *(signal.getsignal(signal.SIGINT), signal.signal),
    ]


@pytest.mark.parametrize("where", ["import", "call"])
def test_what_a_module_sets_does_not_reach_others(folder: Path, where: str):
    lines = [
        "torch.set_default_dtype(torch.float64)",
        "torch.set_default_device('meta')",
        "torch.set_grad_enabled(False)",
        "torch.set_num_threads(torch.get_num_threads() + 1)",
        "torch.use_deterministic_algorithms(True)",
        "os.chdir('/')",
        "sys.argv = ['x']",
        "sys.stdout = sys.stderr = None",
        "sys.setrecursionlimit(500)",
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",
    ]
    indent = "    " if where == "call" else ""
    body = "\n".join(indent + line for line in lines)
    called, imported = (body, "") if where == "call" else ("    pass", body)
    (folder / "guest_sets.py").write_text(
        f"import os, signal, sys, torch\nfrom guest_net import Net\n{imported}\n"
        f"def make():\n{called}\n    return Net()\n"
    )
    before = settings()
    for build in (construct, construct_on_meta):
        build("guest_sets:make")
        assert settings() == before
    assert construct("guest_net:Net").conv.weight.dtype == torch.float32


def test_an_import_leaves_the_random_numbers_alone(folder: Path):
    (folder / "guest_seeds.py").write_text(NET + "torch.manual_seed(7)\n")
    state = torch.get_rng_state()
    construct_on_meta("guest_seeds:Net")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_module_may_parse_its_own_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["builder", "plan", "--cohort", "x.csv"])
    (folder / "guest_args.py").write_text(
        NET + "import argparse\np = argparse.ArgumentParser()\n"
        "p.add_argument('--lr', default=0.1)\nargs = p.parse_args()\n"
    )
    assert construct("guest_args:Net").conv.weight.shape == (4, 3, 3, 3)
    assert sys.argv[1] == "plan"


def test_modules_imported_late_are_found_and_their_constants_are_real(folder: Path):
    (folder / "third_party").mkdir()
    (folder / "third_party" / "guest_late.py").write_text(NET + "MU = torch.zeros(3)\n")
    (folder / "guest_early.py").write_text(
        "import os, sys, torch\nMU = torch.zeros(3)\n"
        "sys.path.insert(0, os.path.join(os.path.dirname(__file__), 'third_party'))\n"
        "def make():\n    import importlib\n    from guest_late import Net\n    return Net()\n"
    )
    model = construct_on_meta("guest_early:make")
    assert model.conv.weight.is_meta
    for name in ("guest_early", "guest_late"):
        assert sys.modules[name].MU.device.type == "cpu"
    assert str(folder) not in sys.path


def test_a_constructor_that_computes_is_real(folder: Path):
    (folder / "guest_reads.py").write_text(
        NET + "def make():\n    net = Net()\n    assert net.conv.weight.sum().item() != 1\n"
        "    return net\n"
    )
    assert construct_on_meta("guest_reads:make").conv.weight.device.type == "cpu"


def test_random_constants_that_no_checkpoint_holds_are_initialised(folder: Path):
    from builder.cohort.registry import ModelSpec
    from builder.sources.constructors import instantiate

    (folder / "guest_mask.py").write_text(
        NET + "class Masked(Net):\n    def __init__(self):\n        super().__init__()\n"
        "        self.mask = torch.full((3,), 7.0).uniform_(0, 1)\n"
        "        self.head = nn.Linear(2, 2)\n"
    )
    spec = ModelSpec("n", "cifar10", True, "A", "guest_mask:Masked", "x")
    model = instantiate(spec, {k: v for k, v in construct("guest_mask:Masked").state_dict().items()
                               if "head" not in k})  # fmt: skip
    assert 0 <= model.mask.min() <= model.mask.max() <= 1
    assert model.head.weight.abs().max() < 1


@pytest.mark.parametrize(
    "line", ["print('said')", "os.system('echo said')", "os.write(1, b'said')", "C.puts(b'said')"]
)
def test_what_a_guest_prints_goes_to_stderr_however_it_does(line: str):
    code = (
        "import ctypes, os\nfrom builder.sources.guest import prints_to_stderr\n"
        f"C = ctypes.CDLL(None)\nprint('before')\nwith prints_to_stderr():\n    {line}\n"
        "print('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["before", "after"]
    assert "said" in done.stderr


def test_a_closed_stdout_is_nobodys_fault():
    code = "from builder.sources.guest import prints_to_stderr as p\nwith p(): print(1)\n"
    command = f"{sys.executable} -c '{code}' >&-"
    assert subprocess.run(command, shell=True).returncode == 0


def test_guests_take_turns():
    inside: list[int] = []

    def work(number: int) -> None:
        with guest():
            inside.append(number)
            threading.Event().wait(0.01)
            inside.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside[::2] == inside[1::2]


def test_an_interruption_and_our_own_errors_are_not_the_guests():
    for error in (KeyboardInterrupt, BuilderError("ours")):
        with pytest.raises(type(error) if isinstance(error, Exception) else error) as e:  # noqa: SIM117
            with blamed("it failed"):
                raise error
        assert "it failed" not in str(e.value)
    with pytest.raises(UsageError, match=r"^it failed: ValueError: first line\.$") as blame:  # noqa: SIM117
        with blamed("it failed"):
            raise ValueError("first line.\nand a stack of C++")
    assert isinstance(blame.value.__cause__, ValueError)


def test_prints_of_the_current_folder_survive(capfd: pytest.CaptureFixture[str]):
    with prints_to_stderr():
        os.write(1, b"inside\n")
    os.write(1, b"outside\n")
    assert capfd.readouterr() == ("outside\n", "inside\n")
