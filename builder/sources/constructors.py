"""From the `constructor` column of a cohort to a network."""

from __future__ import annotations

import contextlib
import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.machinery import SourceFileLoader
from typing import TYPE_CHECKING, Any

from builder.cohort.registry import IMAGE_SIZE, ModelSpec
from builder.errors import UsageError
from builder.sources.compat import import_robustbench, import_torchvision, prepare_imports
from builder.sources.guest import blamed, guest
from builder.sources.reparametrized import remove

if TYPE_CHECKING:
    from torch import Tensor, nn

_FORMS = (
    "robustbench:DATASET/NAME, robustbench:DATASET/THREAT_MODEL/NAME, timm:NAME, "
    "torchvision:NAME, or package.module:callable"
)


def construct(constructor: str) -> nn.Module:
    """The network a constructor names, with whatever initial weights it gives it.

    Nothing is downloaded. Layers under weight_norm, spectral_norm or pruning come without: their
    weight is a plain parameter.

    Raises:
        UsageError: unknown form or name, or what it names cannot be called or makes no network.
    """
    return _call(constructor, _maker(constructor))


def construct_on_meta(constructor: str) -> nn.Module:
    """The network a constructor names, without memory, in evaluation mode.

    A constructor that computes with its tensors cannot do that on the meta device: its network is
    a real one, on the CPU.

    Raises:
        UsageError: see `construct`.
    """
    import torch

    make = _maker(constructor)

    def on_meta() -> Any:
        # The device first: what it imports itself cannot be run on another device.
        with torch.device("meta"), _modules_are_real(), _small_constants_are_real():
            return make()

    try:
        return _call(constructor, on_meta).eval()
    except UsageError:
        return _call(constructor, make).eval()


def _maker(constructor: str) -> Callable[[], Any]:
    """What makes the network, imported."""
    kind, _, name = constructor.partition(":")
    if not (kind and name):
        missing = "name" if kind else "module"
        raise UsageError(f"constructor {constructor!r} has no {missing}; expected {_FORMS}.")
    return _KINDS.get(kind, _from_module)(kind, name)


def _call(constructor: str, make: Callable[[], Any]) -> nn.Module:
    import torch

    with guest(), blamed(f"constructor {constructor!r} failed"), _nothing_moves_to_cuda():
        model = make()
        if not isinstance(model, torch.nn.Module):
            raise UsageError(
                f"constructor {constructor!r} returned {type(model).__name__}, not a "
                "torch.nn.Module."
            )
        # A class of the user's may break any of these; whoever takes the network relies on them.
        model.train(model.training)
        model.state_dict()
        lazy = [n for n, p in model.named_parameters() if torch.nn.parameter.is_lazy(p)]
    if lazy:
        raise UsageError(
            f"constructor {constructor!r} leaves the shape of {', '.join(lazy)} to the first image "
            "(a lazy layer).",
            hint="give the layer its input channels, or run the network once in the constructor.",
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
    if not {name for name, _ in model.named_parameters()} <= state.keys():
        model = construct(spec.constructor)
    with blamed(f"the network of {spec.constructor!r} does not take its weights"):
        own = model.state_dict()
        state = {k: state[k].to(dtype=t.dtype) for k, t in own.items() if k in state}
        model.load_state_dict(state, strict=False, assign=True)
        for parameter in model.parameters():  # a scripted network has no requires_grad_
            parameter.requires_grad_(False)
        return model.eval()


def image_size(constructor: str, model: nn.Module, dataset: str) -> int:
    """Height and width of the images a network takes, in pixels.

    A network that takes one size only says so (`image_size`, as torchvision's transformers;
    `fixed_input_size`, as timm's). For ImageNet, timm and torchvision say at which size a network
    is evaluated. Else it is that of the data set.
    """
    own = getattr(model, "image_size", None)
    config = getattr(model, "pretrained_cfg", None)
    config = config if isinstance(config, dict) else {}
    if isinstance(own, int):
        return own
    if "input_size" in config and (dataset == "imagenet" or config.get("fixed_input_size")):
        return int(config["input_size"][-1])
    kind, _, name = constructor.partition(":")
    if kind == "torchvision" and dataset == "imagenet":
        preset = import_torchvision().models.get_model_weights(name).DEFAULT.transforms()
        return int(getattr(preset, "crop_size", [IMAGE_SIZE[dataset]])[0])
    return IMAGE_SIZE[dataset]


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
    import torch

    where = f"constructor '{module}:{name}'"
    if module.partition(".")[0] != "builder":
        prepare_imports()
    where_from = (
        f"expected {_FORMS}; modules are looked for in the current folder and among the installed "
        "packages."
    )
    try:
        with guest(), blamed(f"{where} cannot be imported"), torch.random.fork_rng(devices=[]):
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                if not hasattr(found, part):
                    known = [n for n in dir(found) if n[0] != "_"]
                    raise _unknown(part, known, f"name in {module}")
                found = getattr(found, part)
    except UsageError as e:
        if e.__cause__ is not None:
            absent = isinstance(e.__cause__, ImportError)
            e.hint = where_from if absent else f"correct the code of {module}, then try again."
        raise
    if not callable(found):
        raise UsageError(f"{where} is not callable; expected a function that returns a network.")
    return found  # type: ignore[no-any-return]


_KINDS: dict[str, Callable[[str, str], Callable[[], Any]]] = {
    "robustbench": _from_robustbench,
    "timm": _from_timm,
    "torchvision": _from_torchvision,
}


@contextlib.contextmanager
def _modules_are_real() -> Iterator[None]:
    """Under the meta device, modules that a constructor imports are run outside it: the constants
    they make outlive this network."""
    import torch

    run = SourceFileLoader.exec_module

    def run_outside(self: SourceFileLoader, module: Any) -> None:
        with torch.device("cpu"):
            run(self, module)

    SourceFileLoader.exec_module = run_outside  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        SourceFileLoader.exec_module = run  # type: ignore[method-assign]


@contextlib.contextmanager
def _nothing_moves_to_cuda() -> Iterator[None]:
    """A constructor's own `.cuda()` does nothing: where a network works is not its to say, and the
    machine may have no such device."""
    import torch

    kept = [(owner, owner.cuda) for owner in (torch.Tensor, torch.nn.Module)]
    for owner, _ in kept:
        owner.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    try:
        yield
    finally:
        for owner, move in kept:
            owner.cuda = move  # type: ignore[method-assign]


@contextlib.contextmanager
def _small_constants_are_real() -> Iterator[None]:
    """Under the meta device, keep on the CPU what is made of Python's own numbers: constructors and
    networks read them again (the rates of stochastic depth, a threshold), and a meta tensor has
    none."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Real(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            small = func in (torch.linspace, torch.tensor)
            return func(*args, **({"device": "cpu"} | kwargs if small else kwargs))

    with Real():
        yield


@contextlib.contextmanager
def _skip_initialisation() -> Iterator[None]:
    """Make random fills of parameters do nothing: most of the time a large network takes."""
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
                filled = args[0] if args else kwargs["tensor"]
                if isinstance(filled, torch.nn.Parameter):
                    return filled
            return func(*args, **kwargs)

    with Skip():
        yield
