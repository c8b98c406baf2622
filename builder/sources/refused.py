"""Which names in a pickle exist to run code: asking for one of them is an attack, or broken.

The reader in unpickle.py makes every unknown name harmless; these are refused all the same, so
that the user hears of it.
"""

from __future__ import annotations

import re
import sysconfig
from functools import cache
from pathlib import Path


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Python 2's names included. Not here, for honest files name them (dill's and cloudpickle's above
# all): copyreg, functools, operator, types, getattr, setattr, the dictionary of a module.
_ANYWHERE = _words("os posix nt sys subprocess ctypes importlib runpy")
_MODULES = _words(
    "posixpath ntpath commands popen2 pty pexpect code codeop imp pkgutil zipimport _ctypes cffi "
    "multiprocessing concurrent threading _thread thread socket _socket socketserver ssl asyncio "
    "urllib urllib2 urllib3 http httplib requests ftplib smtplib xmlrpc telnetlib webbrowser "
    "antigravity shutil tempfile fileinput mmap pickle _pickle cPickle cloudpickle dill joblib "
    "shelve marshal pdb bdb trace profile cProfile timeit doctest pip ensurepip venv site "
    "setuptools distutils pydoc sqlite3 tarfile zipfile IPython"
)
_BUILTINS = _words(
    "eval exec execfile compile open file __import__ input raw_input breakpoint exit quit help "
    "globals locals vars delattr apply reload"
)
_NAMES = _words(
    "torch.load torch.save torch.serialization.load torch.storage._load_from_bytes numpy.load "
    "numpy.save io.open _io.open io.FileIO _io.FileIO io.open_code codecs.open types.CodeType "
    "types.FunctionType pandas.read_pickle"
)
_PREFIXES = tuple(
    _words(
        "torch.hub. torch.package. torch.jit. torch.ops. torch.utils.cpp_extension. "
        "torch.distributed.rpc. torch._dynamo. torch._inductor. numpy.testing. numpy.f2py. "
        "numpy.distutils. numpy.ctypeslib."
    )
)
# How dill and cloudpickle put functions and classes together again; dill.loads and its like stay
# refused. The last two are dill's names for itself and for the dictionary of __main__.
_REBUILDING = re.compile(
    r"dill\.(_dill|dill|_shims)\._\w+|cloudpickle\.cloudpickle(_fast)?\.(_\w+|subimport)"
    r"|dill\._dill|(builtins|__builtin__)\.__main__"
)


def runs_code(module: str, name: str) -> bool:
    """Whether a global exists to run code, load more pickles, or reach files or the network."""
    full = f"{module}.{name}"
    parts = full.split(".")
    if _REBUILDING.fullmatch(full):
        return False
    attributes = parts[1:-1] if name == "__dict__" else parts[1:]
    return (
        (parts[0] in _MODULES and not _is_somebodys_own(parts[0], parts[1]))
        or not _ANYWHERE.isdisjoint(p.lstrip("_") for p in parts)
        or (parts[0] in ("builtins", "__builtin__") and parts[1] in _BUILTINS)
        or any(p.startswith("__") and p.endswith("__") for p in attributes)
        or full in _NAMES
        or full.startswith(_PREFIXES)
    )


@cache
def _words_of(module: str) -> frozenset[str]:
    """All words in the source of one of Python's modules; none where it has none of its own."""
    try:
        source = Path(sysconfig.get_path("stdlib"), f"{module}.py").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return frozenset()
    return frozenset() if "import *" in source else frozenset(re.findall(r"\w+", source))


def _is_somebodys_own(module: str, attribute: str) -> bool:
    """Whether a name of Python's stands for somebody's own module (`trace.py`, a package `code`):
    where the text of Python's module does not even mention the attribute."""
    words = _words_of(module)
    return bool(words) and attribute not in words and not attribute.startswith("_")
