"""One network beside a reference: by depth, as a whole, and in a few plain words."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from builder.compare.reference import DEPTH_METRICS, KINDS, Basis, Reference
from builder.release.moments import Array

MODEL_METRICS = {
    "sparsity": "share of sparse filters",
    "explained_variance_first": "variance on first component",
    "pca_entropy": "entropy of its PCA spectrum",
    "distance_to_robust": "distance to the robust basis",
    "distance_to_standard": "distance to the standard basis",
}
"""Numbers of a whole network that every model of a reference has, and what to call them."""

_WORDS = {
    "sparsity": ("less sparse", "sparser"),
    "variance_entropy": ("less diverse", "more diverse"),
    "orthogonality": ("less orthogonal", "more orthogonal"),
}
_DEEPEST = (9, 10)


@dataclass(frozen=True)
class DepthRow:
    """A metric of the network in one depth bin, beside the members of a kind of model.

    `below` is the share of members with a smaller value; null where only quartiles are published.
    """

    depth_bin: int
    metric: str
    value: float
    kind: str
    n: int
    q1: float
    median: float
    q3: float
    below: float | None

    @property
    def place(self) -> int:
        """-1 below the lower quartile, 1 above the upper one, 0 between."""
        return (self.value > self.q3) - (self.value < self.q1)


@dataclass(frozen=True)
class ModelRow:
    """A number of the whole network, beside every model of a kind.

    `rank` counts from 1, the smallest: one more than the models with a smaller value.
    """

    metric: str
    value: float
    kind: str
    n: int
    rank: int
    median: float


@dataclass(frozen=True)
class Comparison:
    """A network beside a reference.

    Attributes:
        against: the reference, in words.
        dataset: image data set of the members compared with by depth; null: not by depth.
        depth: one row per depth bin, metric and kind.
        models: one row per number of the whole network and kind.
        not_compared: what could not be compared, and why.
    """

    against: str
    dataset: str | None
    depth: tuple[DepthRow, ...]
    models: tuple[ModelRow, ...]
    not_compared: tuple[str, ...]

    @property
    def sentences(self) -> list[str]:
        """What the rows say, in words; each names the numbers it rests on."""
        return [*self._about_depth(), *self._about_sparsity(), *self._about_the_basis()]

    def __str__(self) -> str:
        return "\n".join([f"against: {self.against}", *self.sentences, *self.not_compared])

    def _repr_html_(self) -> str:
        """The sentences for a notebook."""
        title, *said = (html.escape(line) for line in str(self).splitlines())
        return f"<p>{title}</p><ul>{''.join(f'<li>{line}</li>' for line in said)}</ul>"

    def _about_depth(self) -> Iterator[str]:
        bins = sorted({row.depth_bin for row in self.depth})
        deepest = max((b for b in bins if b in _DEEPEST), default=None)
        for depth_bin, name in ((0, "First layer"), (deepest, "Deepest layers")):
            if depth_bin not in bins:
                continue
            for metric in ("variance_entropy", "sparsity"):
                rows = [r for r in self.depth if (r.depth_bin, r.metric) == (depth_bin, metric)]
                if len(rows) == len(KINDS):
                    named = metric.replace("_", " ")
                    yield f"{name}: {named} {rows[0].value:.3f}, {_places(rows)}."

    def _about_sparsity(self) -> Iterator[str]:
        rows = [row for row in self.models if row.metric == "sparsity"]
        if rows:
            counts = " and ".join(f"{r.n - r.rank + 1} of {r.n} {r.kind} ones" for r in rows)
            yield f"Sparsity {rows[0].value:.4f}: at least as sparse are {counts}."

    def _about_the_basis(self) -> Iterator[str]:
        to = {row.metric: row.value for row in self.models}
        near = [to.get(f"distance_to_{kind}") for kind in KINDS]
        if near[0] is not None and near[1] is not None:
            closer, other = KINDS if near[0] < near[1] else KINDS[::-1]
            yield (
                f"Its PCA basis is nearer to that of the {closer} models "
                f"({to[f'distance_to_{closer}']:.3f}) than of the {other} ones "
                f"({to[f'distance_to_{other}']:.3f})."
            )


def _places(rows: list[DepthRow]) -> str:
    """Where a value lies among robust and among standard members, in words."""
    said = []
    for row in rows:
        who = f"the {row.kind} models ({row.q1:.3f} to {row.q3:.3f})"
        word = _WORDS[row.metric][row.place > 0]
        said.append(f"{word} than three quarters of {who}" if row.place else f"like {who}")
    first, second = said
    shared = f"{_WORDS[rows[0].metric][rows[0].place > 0]} than three quarters "
    if rows[0].place == rows[1].place != 0:
        second = second.removeprefix(shared)
    return f"{first} and {second}"


def compare_depth(
    values: dict[tuple[int, str], float], dataset: str, reference: Reference
) -> Iterator[DepthRow]:
    """Rows for {(depth bin, metric): value}, where the reference has members there."""
    for (depth_bin, metric), value in sorted(
        values.items(), key=lambda item: (item[0][0], DEPTH_METRICS.index(item[0][1]))
    ):
        for kind in KINDS:
            box = reference.boxes.get((dataset, kind, metric, depth_bin))
            if box is not None:
                below = None if box.values is None else float(np.mean(box.values < value))
                yield DepthRow(
                    depth_bin, metric, value, kind, box.n, box.q1, box.median, box.q3, below
                )


def compare_models(
    sparsity: float | None, basis: Basis | None, reference: Reference
) -> Iterator[ModelRow]:
    """Rows for the numbers of a whole network, as far as they are known."""
    for kind in KINDS:
        bases, sparsities = reference.bases.get(kind, []), reference.sparsity.get(kind)
        if sparsity is not None and sparsities is not None and len(sparsities):
            yield _ranked("sparsity", sparsity, kind, sparsities)
        if basis is None or not bases:
            continue
        yield _ranked(
            "explained_variance_first",
            float(basis.ratios[0]),
            kind,
            np.array([b.ratios[0] for b in bases]),
        )
        yield _ranked("pca_entropy", basis.entropy, kind, np.array([b.entropy for b in bases]))
        for union, whole in reference.unions.items():
            yield _ranked(
                f"distance_to_{union}",
                basis.distance(whole),
                kind,
                np.array([b.distance(whole) for b in bases]),
            )


def _ranked(metric: str, value: float, kind: str, values: Array) -> ModelRow:
    return ModelRow(
        metric,
        value,
        kind,
        len(values),
        1 + int((values < value).sum()),
        float(np.median(values)),
    )
