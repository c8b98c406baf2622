"""From the `constructor` column of a cohort to a network."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.cohort.registry import ModelSpec
from builder.errors import UsageError
from builder.sources.compat import import_robustbench, import_torchvision
from builder.sources.reparametrized import remove

if TYPE_CHECKING:
    from torch import Tensor, nn

_FORMS = (
    "robustbench:DATASET/NAME, robustbench:DATASET/THREAT_MODEL/NAME, timm:NAME, "
    "torchvision:NAME, or package.module:callable"
)

FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What somebody else's module, constructor or forward pass may raise for reasons of its own."""


def construct(constructor: str) -> nn.Module:
    """The network a constructor names, with whatever initial weights it gives it.

    Under `torch.device("meta")` it costs no memory. Nothing is downloaded. Layers under
    weight_norm, spectral_norm or pruning come without: their weight is a plain parameter.

    Raises:
        UsageError: unknown form or name, or what it names cannot be called or makes no network.
    """
    import torch

    kind, _, name = constructor.partition(":")
    if not (kind and name):
        missing = "name" if kind else "module"
        raise UsageError(f"constructor {constructor!r} has no {missing}; expected {_FORMS}.")
    make = _KINDS.get(kind, _from_module)(kind, name)
    try:
        with _small_constants_are_real():
            model = make()
    except FAILURES as e:
        raise UsageError(f"constructor {constructor!r} failed: {type(e).__name__}: {e}.") from e
    if not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"constructor {constructor!r} returned {type(model).__name__}, not a torch.nn.Module."
        )
    return remove(model)


def instantiate(spec: ModelSpec, state: Mapping[str, Tensor]) -> nn.Module:
    """The real network of `spec` on the CPU with the weights of `state`, in evaluation mode.

    Random initialisation, which `state` would overwrite, is skipped. Keys that `state` lacks keep
    the constructor's value (see `state.fit_state`: an input normalisation's constants).
    Parameters have the constructor's element type; memory of `state` is shared where it has too.
    """
    with _skip_initialisation():
        model = construct(spec.constructor)
    own = model.state_dict()
    state = {k: state[k].to(dtype=t.dtype) for k, t in own.items() if k in state}
    model.load_state_dict(state, strict=False, assign=True)
    return model.eval().requires_grad_(False)


def robustbench_entry(dataset: str, threat_model: str, name: str) -> Mapping[str, Any]:
    """An entry of RobustBench's registry: `model` (zero-argument callable) and `gdrive_id`.

    Raises:
        UsageError: no such data set, threat model or name.
    """
    import_robustbench()
    from robustbench.model_zoo.models import model_dicts

    registry = {
        d.value: {t.value: models for t, models in by_threat.items()}
        for d, by_threat in model_dicts.items()
    }
    models = _look_up(registry, dataset, "RobustBench data set")
    entries = _look_up(models, threat_model, f"RobustBench threat model for {dataset}")
    entry: Mapping[str, Any] = _look_up(
        entries, name, f"RobustBench {dataset}/{threat_model} model"
    )
    return entry


def robustbench_name(name: str) -> tuple[str, str, str]:
    """DATASET/NAME or DATASET/THREAT_MODEL/NAME as (data set, threat model, name).

    Raises:
        UsageError: another number of parts.
    """
    parts = name.split("/")
    if len(parts) == 2:
        parts.insert(1, "Linf")
    if len(parts) != 3:
        raise UsageError(f"'robustbench:{name}' should be robustbench:DATASET/THREAT_MODEL/NAME.")
    return parts[0], parts[1], parts[2]


def _look_up(table: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in table:
        raise _unknown(name, table, what)
    return table[name]


def _unknown(name: str, known: Iterable[str], what: str) -> UsageError:
    folded = {k.lower(): k for k in known}
    near = [folded[n] for n in difflib.get_close_matches(name.lower(), folded, n=4, cutoff=0.5)]
    return UsageError(
        f"unknown {what} {name!r}.",
        hint=f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(known)}."[:300],
    )


def _from_robustbench(kind: str, name: str) -> Callable[[], Any]:
    entry = robustbench_entry(*robustbench_name(name))
    if not entry["gdrive_id"]:
        raise UsageError(
            f"RobustBench has no checkpoint of its own for {name}: its constructor downloads one.",
            hint="use torchvision:NAME or timm:NAME, and the checkpoint's address.",
        )
    make: Callable[[], Any] = entry["model"]
    return make


def _from_timm(kind: str, name: str) -> Callable[[], Any]:
    import_torchvision()  # timm imports it, and cannot beside a CPU-only torch
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise _unknown(name, timm.list_models(), "timm model")
    return lambda: timm.create_model(name, pretrained=False)


def _from_torchvision(kind: str, name: str) -> Callable[[], Any]:
    models = import_torchvision().models
    if name not in models.list_models():
        raise _unknown(name, models.list_models(), "torchvision model")
    return lambda: models.get_model(name, weights=None)


def _from_module(module: str, name: str) -> Callable[[], Any]:
    where = f"constructor '{module}:{name}'"
    sys.path.insert(0, str(Path.cwd()))  # as `python` does; the `builder` script does not
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            if not hasattr(found, part):
                raise _unknown(part, [n for n in dir(found) if n[0] != "_"], f"name in {module}")
            found = getattr(found, part)
    except ImportError as e:
        raise UsageError(
            f"{where} cannot be imported: {e}.",
            hint=f"expected {_FORMS}; modules are looked for in the current folder and among the "
            "installed packages.",
        ) from e
    except FAILURES as e:
        raise UsageError(
            f"{where} cannot be imported: {type(e).__name__}: {e}.",
            hint=f"correct the code of {module}, then run the same command again.",
        ) from e
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise UsageError(f"{where} is not callable; expected a function that returns a network.")
    return found  # type: ignore[no-any-return]


_KINDS: dict[str, Callable[[str, str], Callable[[], Any]]] = {
    "robustbench": _from_robustbench,
    "timm": _from_timm,
    "torchvision": _from_torchvision,
}


@contextlib.contextmanager
def _small_constants_are_real() -> Iterator[None]:
    """Under the meta device, keep torch.linspace on the CPU: timm's constructors read numbers
    (the rates of stochastic depth) out of it, and a meta tensor has none."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Real(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            return func(*args, **({"device": "cpu"} | kwargs if func is torch.linspace else kwargs))

    with Real():
        yield


@contextlib.contextmanager
def _skip_initialisation() -> Iterator[None]:
    """Make random fills do nothing: most of the time a large network takes to construct."""
    import torch
    from torch.overrides import TorchFunctionMode

    random = ["normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "trunc_normal_"]
    random += ["xavier_normal_", "xavier_uniform_", "orthogonal_"]
    owners = (torch.Tensor, torch.nn.init)
    fills = {getattr(owner, f) for owner in owners for f in random if hasattr(owner, f)}

    class Skip(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if func in fills:
                return args[0] if args else kwargs["tensor"]
            return func(*args, **kwargs)

    with Skip():
        yield
