"""Every table of a release, once: columns, types, units, descriptions, keys, paths.

The writer, the verifier, the dataset card and the documentation read this module; nothing
else states a column. It imports nothing of the package but its errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from builder.errors import UsageError

SCHEMA_VERSION = 1

WEIGHT_VIEWS = ("trained", "folded")
"""`trained`: the checkpoint's weights. `folded`: multiplied by the scale of the BatchNorm that
alone consumes the convolution's output, as the paper analysed them."""


def check_view(view: str) -> None:
    """Refuse a view of the weights that is none of `WEIGHT_VIEWS`."""
    if view not in WEIGHT_VIEWS:
        raise UsageError(f"unknown view {view!r}; expected {' or '.join(WEIGHT_VIEWS)}.")


VIEW_SUFFIX = {"folded": "", "trained": "_trained"}
"""View -> end of the names of its columns in `models`; the paper's view has the plain names."""

UNIONS = ("full", "robust", "standard")
"""Sets of models that share a PCA basis: the robust ones of one threat model, the standard ones,
and both together (see `unions`)."""

N_BINS = 70
"""Bins of the coefficient histograms (paper section 3, divergence)."""

N_DEPTH_BINS = 11
"""Depth bin 0 is the first convolution; 1..10 are the right-closed deciles of conv_depth_norm."""

FILTER_COLUMNS = tuple(f"w{row}{col}" for row in range(3) for col in range(3))
"""The nine coefficients of a 3x3 slice, row-major: w00 w01 w02 w10 ... w22."""

SCATTER_PAIRS = tuple((i, j) for i in range(9) for j in range(i, 9))
"""Order of the 45 entries of a packed symmetric 9x9 matrix: the upper triangle, row by row."""


@dataclass(frozen=True)
class Tolerance:
    """How far two values of a column may lie apart and still be the same value, rounded otherwise.

    `|a - b| <= absolute + relative * max(|a|, |b|)`; in a vector, the largest entry stands for it.
    """

    relative: float = 0.0
    absolute: float = 0.0


EXACT = Tolerance()
"""Keys, texts, counts, filters and what follows from them without rounding: the same or changed."""

_ROUNDED = Tolerance(relative=1e-9)
"""Sums in float64, whose order depends on the processor and on the library."""

SHARE = Tolerance(relative=1e-9, absolute=1e-9)
"""The same where the natural scale is 1, and zero may come out as rounding: entropies, variances of
scaled filters and their shares."""

_FLOAT32 = Tolerance(absolute=1e-6)
"""Of the scale of 1, through float32 (cosines, means of scaled filters) or near variances
(directions)."""

_ATTACKED = Tolerance(relative=1e-2, absolute=1e-2)
"""Behind many float32 steps of which each depends on the sign of the one before: 9e-3 measured."""


@dataclass(frozen=True)
class Column:
    """One column: name, Arrow type, one-sentence description, whether it may be null, tolerance.

    `tolerance` is how far the same column of another build of the same release may differ. Releases
    are compared by it wherever they are compared: `builder diff`, the version rule of publishing.
    """

    name: str
    type: pa.DataType
    description: str
    nullable: bool = False
    tolerance: Tolerance = EXACT


@dataclass(frozen=True)
class Table:
    """One table: its columns in file order, its primary key, and what one row is."""

    name: str
    description: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]

    @cached_property
    def arrow(self) -> pa.Schema:
        """The Arrow schema, without metadata."""
        return pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in self.columns])

    def column(self, name: str) -> Column:
        """The column of a name."""
        return next(c for c in self.columns if c.name == name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.columns)


_TEXT = pa.string()
_LABEL = pa.dictionary(pa.int32(), pa.string())
_VECTOR = pa.list_(pa.float64(), 9)

_DATASET = Column("dataset", _LABEL, "Image data set: cifar10, cifar100 or imagenet.")
_MODEL_ID = Column("model_id", _LABEL, "Model: {dataset}-{robust|standard}-{network}.")
_WEIGHTS = Column(
    "weights",
    _LABEL,
    "View of the weights: `trained` (the checkpoint's) or `folded` (times bn_scale, the paper's).",
)


def _coefficients(meaning: str) -> tuple[Column, ...]:
    return tuple(
        Column(name, pa.float32(), f"{meaning}, row {name[1]}, column {name[2]}.")
        for name in FILTER_COLUMNS
    )


FILTERS = Table(
    "filters",
    "One row per 3x3 filter, sorted by (layer_index, out_channel, in_channel).",
    ("model_id", "layer_index", "out_channel", "in_channel"),
    (
        _DATASET,
        _MODEL_ID,
        Column("layer_index", pa.int16(), "Index of the layer among the model's 3x3 layers."),
        Column("out_channel", pa.int16(), "Index of the output channel."),
        Column("in_channel", pa.int16(), "Index of the input channel, inside its group."),
        *_coefficients("Trained weight"),
        Column("linf", pa.float32(), "max |w| of the filter, trained: its scale."),
        Column(
            "bn_scale",
            pa.float32(),
            "gamma / sqrt(running_var + eps) of the BatchNorm folded in, 1 where there is none; "
            "w * bn_scale in float32 is the filter the paper analysed.",
        ),
    ),
)

_LAYER_KEY = (
    _DATASET,
    _MODEL_ID,
    Column("layer_index", pa.int16(), "Order of execution among the model's 3x3 layers, from 0."),
    Column("layer", _TEXT, "Dotted module path, e.g. layer1.0.conv1."),
)

LAYER_GRAPH = (
    Column(
        "conv_depth", pa.int16(), "Rank of the longest path from the input, among all convolutions."
    ),
    Column(
        "conv_depth_norm", pa.float64(), "conv_depth / (number of distinct depths - 1), 0 to 1."
    ),
    Column("depth_bin", pa.int16(), "0: first convolution; 1..10: deciles (0,0.1] ... (0.9,1]."),
    Column("out_channels", pa.int32(), "Number of output channels."),
    Column("in_channels", pa.int32(), "Number of input channels inside a group."),
    Column("groups", pa.int32(), "Groups of the convolution."),
    Column("stride", pa.int16(), "Stride along the rows."),
    Column("n_filters", pa.int64(), "3x3 filters: out_channels * in_channels."),
    Column(
        "bn_layer",
        _TEXT,
        "Module path of the BatchNorm folded in; of several in a row, all; null where none.",
        True,
    ),
)
"""Columns of `layers` that need no weights."""

LAYERS = Table(
    "layers",
    "One row per 3x3 layer and weights view: where the layer sits, and its reference metrics.",
    ("model_id", "layer_index", "weights"),
    (
        *_LAYER_KEY,
        _WEIGHTS,
        *LAYER_GRAPH,
        Column(
            "reparametrized",
            _LABEL,
            "weight_norm, spectral_norm or pruning where the checkpoint holds what the weight is "
            "computed from, and the weight was computed from it; null where it holds the weight.",
            True,
        ),
        Column("layer_linf", pa.float64(), "Largest |weight| of the layer.", True),
        Column("n_sparse", pa.int64(), "Filters with max |w| <= layer_linf / 100.", True),
        Column("sparsity", pa.float64(), "n_sparse / n_filters, 0 to 1.", True),
        Column(
            "variance_entropy",
            pa.float64(),
            "Entropy (base 10) of the explained variance ratios of the non-sparse filters, each "
            "divided by its own max |w|; 0 to 0.954.",
            True,
            tolerance=SHARE,
        ),
        Column(
            "variance_entropy_norm",
            pa.float64(),
            "variance_entropy / T(n), T the random-filter threshold of torchconvquality at the "
            "number of non-sparse filters; null where T <= 0.",
            True,
            tolerance=SHARE,
        ),
        Column(
            "variance_entropy_raw",
            pa.float64(),
            "Entropy of all filters, unscaled (torchconvquality's variance_entropy).",
            True,
            tolerance=SHARE,
        ),
        Column(
            "variance_entropy_raw_norm",
            pa.float64(),
            "variance_entropy_raw / T(n_filters) (torchconvquality's variance_entropy_norm).",
            True,
            tolerance=SHARE,
        ),
        Column(
            "variance_entropy_raw_clean",
            pa.float64(),
            "Entropy of the non-sparse filters, unscaled (variance_entropy_clean there).",
            True,
            tolerance=SHARE,
        ),
        Column(
            "variance_entropy_raw_clean_norm",
            pa.float64(),
            "variance_entropy_raw_clean / T(n) (variance_entropy_clean_norm there).",
            True,
            tolerance=SHARE,
        ),
        Column(
            "orthogonality",
            pa.float64(),
            "1 - sum |W W^T - I| / (n (n - 1)), rows of W the flattened, L2-normalised output "
            "channels; null for one channel.",
            True,
            tolerance=_FLOAT32,
        ),
        Column(
            "norm_l1",
            pa.float64(),
            "Mean L1 norm of the layer's filters.",
            True,
            tolerance=_ROUNDED,
        ),
        Column(
            "norm_l2",
            pa.float64(),
            "Mean L2 norm of the layer's filters.",
            True,
            tolerance=_ROUNDED,
        ),
        Column(
            "explained_variance_ratio",
            _VECTOR,
            "Explained variance ratios of the scaled non-sparse filters, descending; zeros where "
            "they do not vary.",
            True,
            tolerance=SHARE,
        ),
        Column(
            "mean", _VECTOR, "Mean scaled non-sparse filter, row-major.", True, tolerance=_FLOAT32
        ),
        Column(
            "scatter",
            pa.list_(pa.float64(), 45),
            "Sum over the scaled non-sparse filters of (x - mean)(x - mean)^T: upper triangle, "
            "row by row. With `mean` and the count, what PCA bases are merged from.",
            True,
            tolerance=_ROUNDED,
        ),
    ),
)

MODELS = Table(
    "models",
    "One row per model: what it is, where its weights came from, and its metrics.",
    ("model_id",),
    (
        _MODEL_ID,
        Column("network", _TEXT, "Name of the network: RobustBench's model id, or timm's."),
        _DATASET,
        Column("robust", pa.bool_(), "Adversarially trained (true) or standard (false)."),
        Column("threat_model", _TEXT, "Threat model trained against, e.g. Linf.", True),
        Column("eps", _TEXT, "Size of the perturbation trained against, as a fraction.", True),
        Column("architecture", _TEXT, "Architecture, e.g. WideResNet-28-10."),
        Column("clean_acc", pa.float64(), "Clean accuracy, percent.", True),
        Column("autoattack_acc", pa.float64(), "Accuracy under AutoAttack, percent.", True),
        Column("extra_data", pa.bool_(), "Trained with additional data.", True),
        Column("title", _TEXT, "Title of the paper.", True),
        Column("authors", _TEXT, "Authors of the paper.", True),
        Column("venue", _TEXT, "Where it appeared.", True),
        Column("year", pa.int16(), "When it appeared.", True),
        Column("paper_url", _TEXT, "Link to the paper.", True),
        Column("license", _TEXT, "Licence of the checkpoint; null where unknown.", True),
        Column("reported_acc", pa.float64(), "Robust accuracy that its paper reports, %.", True),
        Column("external_acc", pa.float64(), "Lower one that others found since, %.", True),
        Column("unreliable", pa.bool_(), "RobustBench doubts its AutoAttack accuracy.", True),
        Column("corruptions_acc", pa.float64(), "Accuracy under common corruptions, %.", True),
        Column("corruptions_mce", pa.float64(), "Mean corruption error, %; AlexNet: 100.", True),
        Column("corruptions_acc_3d", pa.float64(), "Accuracy under 3D corruptions, %.", True),
        Column("corruptions_mce_3d", pa.float64(), "Mean error under those, %.", True),
        Column("n_forward_passes", pa.int16(), "Forward passes of one prediction.", True),
        Column("footnote", _TEXT, "RobustBench's remark.", True),
        Column("constructor", _TEXT, "What builds the architecture, e.g. timm:resnet50."),
        Column("source", _TEXT, "Kind of source: robustbench, zenodo, timm, embedded, file, ..."),
        Column("source_url", _TEXT, "Address of the checkpoint, as the cohort gives it.", True),
        Column("checkpoint_sha256", _TEXT, "SHA-256 of the checkpoint file(s).", True),
        Column("checkpoint_bytes", pa.int64(), "Bytes of the checkpoint file(s).", True),
        Column(
            "n_params", pa.int64(), "Parameters of the network; null where it was not built.", True
        ),
        Column("n_layers", pa.int32(), "3x3 layers that run."),
        Column("n_filters", pa.int64(), "3x3 filters that run."),
        Column("filters_hash", _TEXT, "Content hash of the model's filters.", True),
        Column(
            "same_filters_as",
            _LABEL,
            "First model of the release with identical filters; null where this one is first.",
            True,
        ),
        Column(
            "group",
            _LABEL,
            "First of the models that must not be separated from this one: of the same filters, "
            "of one paper or pair, and so on from each of those.",
        ),
        Column(
            "split",
            _LABEL,
            "train, validation or test, for learning from weights: whole groups, about 70, 15 and "
            "15 % of the filters, alike in data set and kind as far as groups allow.",
        ),
        *(
            Column(name + suffix, type_, f"{text} ({view} weights).", True, tolerance)
            for view, suffix in VIEW_SUFFIX.items()
            for name, type_, text, tolerance in (
                ("n_sparse", pa.int64(), "Sparse filters, all layers", EXACT),
                ("sparsity", pa.float64(), "n_sparse / n_filters", EXACT),
                (
                    "variance_entropy",
                    pa.float64(),
                    "Mean over layers, weighted by non-sparse filters",
                    SHARE,
                ),
                (
                    "orthogonality",
                    pa.float64(),
                    "Mean over layers, weighted by out_channels",
                    _FLOAT32,
                ),
            )
        ),
    ),
)

PAIRS = Table(
    "pairs",
    "One row per robust model and the standard model it is compared with.",
    ("robust_model_id",),
    (
        Column("robust_model_id", _TEXT, "The robust member."),
        Column("standard_model_id", _TEXT, "The standard member; shared by several pairs."),
        _DATASET,
        Column("architecture", _TEXT, "Architecture of both."),
    ),
)

PCA = Table(
    "pca",
    "One row per basis, weights view and component: PCA of scaled non-sparse filters.",
    ("basis", "weights", "component"),
    (
        Column(
            "basis",
            _TEXT,
            "A model_id, or a union: `full`, `robust` or `standard`. They are of one threat model, "
            "Linf where there is any; of another they are called, say, `full:L2`, `robust:L2`.",
        ),
        _WEIGHTS,
        Column("component", pa.int16(), "0 (largest variance) to 8."),
        Column("n_samples", pa.int64(), "Filters the basis is fitted on."),
        Column(
            "explained_variance",
            pa.float64(),
            "Variance along the component (n - 1).",
            True,
            tolerance=SHARE,
        ),
        Column(
            "explained_variance_ratio",
            pa.float64(),
            "Share of the total variance.",
            True,
            tolerance=SHARE,
        ),
        Column(
            "direction",
            _VECTOR,
            "Unit vector, row-major; its entry of largest magnitude is positive.",
            True,
            tolerance=_FLOAT32,
        ),
        Column("mean", _VECTOR, "Mean filter of the basis, row-major.", True, tolerance=SHARE),
    ),
)

HISTOGRAMS = Table(
    "histograms",
    "One row per model, depth bin, component and bin: coefficients of the folded, scaled "
    "non-sparse filters on the full basis.",
    ("model_id", "depth_bin", "component", "bin"),
    (
        _DATASET,
        _MODEL_ID,
        Column("depth_bin", pa.int16(), "Depth bin of the layers counted."),
        Column("component", pa.int16(), "Component of the full basis, 0 to 8."),
        Column(
            "bin",
            pa.int16(),
            "0 to 69: equal bins over [min, max] of all coefficients of the full basis' models; "
            "what other models have beyond is in the first and the last.",
        ),
        Column("bin_low", pa.float64(), "Lower edge of the bin.", tolerance=SHARE),
        Column("bin_high", pa.float64(), "Upper edge of the bin.", tolerance=SHARE),
        Column(
            "n",
            pa.int64(),
            "Filters whose coefficient falls in the bin.",
            tolerance=Tolerance(absolute=1),  # one on an edge may fall to either side
        ),
    ),
)

FIRST_LAYER = Table(
    "first_layer",
    "One row per model, perturbation and output channel of the first convolution (channel null: "
    "the whole layer): how much of an Linf perturbation passes.",
    ("model_id", "layer", "perturbation", "out_channel"),
    (
        _DATASET,
        _MODEL_ID,
        Column("layer", _TEXT, "Name of the first convolution, as in `layers`."),
        Column("perturbation", _LABEL, "`random` (signs) or `pgd` (of the model itself)."),
        Column("out_channel", pa.int16(), "Output channel; null: all channels together.", True),
        Column(
            "eps",
            pa.float64(),
            "Linf radius in units of the [0, 1] image; null: the model has another threat model.",
            True,
        ),
        Column("n_images", pa.int32(), "Natural images averaged over."),
        Column(
            "response_pre",
            pa.float64(),
            "Relative perturbation before the activation over that of the input; null: the channel "
            "is constant.",
            True,
            tolerance=_ATTACKED,
        ),
        Column(
            "response_post",
            pa.float64(),
            "The same behind the activation; null: the channel is constant.",
            True,
            tolerance=_ATTACKED,
        ),
        Column(
            "activation_pass",
            pa.float64(),
            "RMS of the change behind the activation over RMS of the change before it.",
            True,
            tolerance=_ATTACKED,
        ),
        Column("reason", _TEXT, "Why the perturbation could not be measured; else null.", True),
    ),
)

PAPER = Table(
    "paper",
    "One row per published value; a null key means: not split by it.",
    (
        "finding",
        "metric",
        "reading",
        "dataset",
        "kind",
        "architecture",
        "model_id",
        "depth_bin",
        "component",
        "entry",
    ),
    (
        Column("finding", _LABEL, "The query that compares with it, e.g. sparsity_by_depth."),
        Column("metric", _LABEL, "What was measured, e.g. sparsity, median, divergence."),
        Column("reading", _LABEL, "Which of several readings, e.g. `pairs` or `distinct`.", True),
        Column("dataset", _LABEL, "Image data set; null: all together.", True),
        Column("kind", _LABEL, "Models counted: robust, standard, or full (both).", True),
        Column("architecture", _LABEL, "Architecture.", True),
        Column("model_id", _LABEL, "Model the value belongs to.", True),
        Column("depth_bin", pa.int16(), "Depth bin, as in `layers`.", True),
        Column("component", pa.int16(), "Principal component, 0 to 8.", True),
        Column("entry", pa.int16(), "Entry of a 3x3 filter, row-major, 0 to 8.", True),
        Column("value", pa.float64(), "The published value."),
        Column(
            "precision",
            pa.float64(),
            "Absolute uncertainty of `value`: 0 for counts; else rounding or digitisation, and "
            "no less than what another order of summation may change.",
        ),
        Column("method", _LABEL, "printed, table, figure (digitised) or computed (from tables)."),
        Column("source", _LABEL, "Where it stands in the authors' repository."),
        Column("note", _TEXT, "Known slip or caveat.", True),
    ),
)

TABLES = {t.name: t for t in (FILTERS, LAYERS, MODELS, PAIRS, PCA, HISTOGRAMS, FIRST_LAYER, PAPER)}

SMALL_TABLES = tuple(name for name in TABLES if name != "filters")
"""The tables that are one file, data/{name}.parquet."""

MANIFEST = "manifest.json"

CARD = "README.md"
"""The data set card. It ends in its own digest and is not in the manifest, see `texts.seal`."""

SAMPLE = "data/filters_sample.parquet"
"""Path of a few rows of `filters`."""

_FILTERS = re.compile(r"data/filters/dataset=([^/]+)/([^/]+)\.parquet")


def table_path(name: str) -> str:
    """Path of a small table inside a release, with forward slashes."""
    return f"data/{name}.parquet"


def filters_path(dataset: str, model_id: str) -> str:
    """Path of one model's filters inside a release, with forward slashes."""
    return f"data/filters/dataset={dataset}/{model_id}.parquet"


def filters_key(path: str) -> tuple[str, str] | None:
    """(dataset, model_id) of a path that `filters_path` makes; None of any other."""
    match = _FILTERS.fullmatch(path)
    return (match[1], match[2]) if match else None


def table_at(path: str) -> Table | None:
    """The table whose rows a file of a release holds; None where it is no table."""
    if path == SAMPLE or filters_key(path):
        return FILTERS
    name = path.removeprefix("data/").removesuffix(".parquet")
    return TABLES[name] if name in SMALL_TABLES and path == table_path(name) else None


def model_id(dataset: str, robust: bool, network: str) -> str:
    """Primary key of a model, usable as a file name."""
    return f"{dataset}-{'robust' if robust else 'standard'}-{network}"


def layer_name(weight: str) -> str:
    """Name of a layer, from the state-dict name of its weight: the path of the module where that
    is called `weight`, else the name itself. Two weights never share one."""
    return weight.removesuffix(".weight")


def studied(threat_models: Iterable[str | None]) -> str | None:
    """The threat model that findings are about, of those of the robust models of a release: Linf,
    as which one without counts, else the first there is. The view `study` says the same in SQL."""
    found = {t or "Linf" for t in threat_models}
    return "Linf" if "Linf" in found else min(found, default=None)


def unions(models: Iterable[tuple[str, bool, str | None]]) -> dict[str, list[str]]:
    """Bases of `pca` that are of several models -> their model_ids, in order; never empty.

    Robust models of two threat models share none: `UNIONS` are of the one that findings are about,
    and those of another, say L2, are called full:L2 and robust:L2.

    Args:
        models: (model_id, robust, threat_model).
    """
    models = list(models)
    own = studied(t for _, robust, t in models if robust)
    found: dict[str, list[str]] = {}
    for threat_model in [own, *sorted({t or "Linf" for _, robust, t in models if robust} - {own})]:
        for union in UNIONS:
            name = union if threat_model == own else f"{union}:{threat_model}"
            members = [
                m
                for m, robust, t in models
                if (robust and union != "standard" and (t or "Linf") == threat_model)
                or (not robust and union != "robust")
            ]
            if members and (threat_model == own or union != "standard"):
                found[name] = members
    return found
