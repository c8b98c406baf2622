"""Every finding: what the paper, or we, found, what a release shows, whether it holds. No torch.

A finding is a query (queries/NN_subject.sql; `origin: ours` marks those that the paper does not
have), or an audit of the filters that has a claim. The claim of the same name in queries/claims/
is a SELECT over its answer, as the table `answer`, with two columns: `shows`, a text, and `holds`,
the direction of the finding (null where the release cannot tell). Its header says what the claim
`needs`, and what it is `about`:

- models   facts of the cohort, such as counts and accuracies: meaningful for any weights
- weights  trained weights: not applicable to seeded ones
- build    values per model that a build must meet: not applicable to a release of published values

Where the answer has a column `within`, it says row by row whether a published value is met within
its precision; that counts on the whole `paper` cohort only, elsewhere the direction alone does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import duckdb

from builder import hub, schema
from builder.cohort.registry import load_cohort
from builder.errors import EXIT_FAILURE, EXIT_OK, BuilderError
from builder.files import project_file
from builder.release.reader import open_release
from builder.release.views import open_views
from builder.sql import catalog

if TYPE_CHECKING:
    from rich.table import Table

SMALL_COHORT = 10
"""Pairs below which a cohort is called small."""

HOLDS, FAILS, CONTRARY, NOT_APPLICABLE = "holds", "fails", "does not hold", "not applicable"
VERDICTS = (HOLDS, FAILS, CONTRARY, NOT_APPLICABLE)
"""`fails` is for the paper's own models; elsewhere a contrary direction `does not hold`."""

_SIGNS = {
    HOLDS: ("✓", "green"),
    FAILS: ("✗", "bold red"),
    CONTRARY: ("≠", "yellow"),
    NOT_APPLICABLE: ("·", "dim"),
}
"""Verdict -> the sign and the style of its words on a terminal."""

COLUMNS = ("verdict", "query", "origin", "paper", "release", "basis")
"""What a table of findings shows."""

_NO_TRAINED_WEIGHTS = {"weights": ("seeded",), "build": ("seeded", "published"), "models": ()}


@dataclass(frozen=True)
class Finding:
    """One line of the answer.

    Attributes:
        query: name of the query. title: its title.
        origin: `paper`, or `ours`: a finding that the paper does not have.
        paper: what was found there. release: what this release shows, null where nothing.
        verdict: holds, fails, does not hold, or not applicable.
        basis: what the verdict rests on, or why it is not applicable.
        direction: whether the direction agrees; null where it cannot be told.
        values: rows with a published value. values_within: those that meet it.
    """

    query: str
    title: str
    origin: str
    paper: str
    release: str | None
    verdict: str
    basis: str
    direction: bool | None
    values: int
    values_within: int


def is_paper_cohort(manifest: Mapping[str, Any]) -> bool:
    """Whether the release holds the whole cohort of the paper: a user's paper.csv may not."""
    if manifest["cohort"]["name"] != "paper":
        return False
    return set(manifest["models"]) == {m.model_id for m in load_cohort("paper").models}


def _scope(manifest: Mapping[str, Any]) -> str:
    if is_paper_cohort(manifest):
        return "direction and value"
    if manifest["totals"]["pairs"] < SMALL_COHORT:
        return "small cohort: direction only"
    return "another cohort: direction only"


def _judge(
    manifest: Mapping[str, Any],
    claim: Mapping[str, str],
    direction: bool | None,
    values: int,
    within: int,
) -> tuple[str, str]:
    """(verdict, basis) of a claim."""
    kind = manifest["weights"].partition(":")[0]
    if kind in _NO_TRAINED_WEIGHTS[claim["about"]]:
        return (
            NOT_APPLICABLE,
            f"{kind} weights" if kind == "seeded" else "these are the published values",
        )
    scope = _scope(manifest)
    if not is_paper_cohort(manifest):
        if direction is None:
            return NOT_APPLICABLE, f"needs {claim['needs']}"
        return (HOLDS if direction else CONTRARY), scope
    if direction is None and not values:
        return NOT_APPLICABLE, f"needs {claim['needs']}"
    said = (
        [] if direction is None else ["direction agrees" if direction else "direction is contrary"]
    )
    said += [f"{within} of {values} values within precision"] if values else []
    good = direction is not False and within == values
    return (HOLDS if good else FAILS), "; ".join(said)


def examine_one(
    con: duckdb.DuckDBPyConnection, manifest: Mapping[str, Any], asked: catalog.Query
) -> Finding:
    """One finding on the views of a release; its rows stay in the temporary table `answer`."""
    path = project_file("queries") / "claims" / f"{asked.name}.sql"
    sql = path.read_text(encoding="utf-8")
    claim = dict(catalog.header(sql))
    con.execute(f"create or replace temp table answer as {asked.sql}")
    columns = [d[0] for d in con.execute("describe answer").fetchall()]
    values, within = 0, 0
    if "within" in columns:
        counted = con.execute(
            "select count(within), count(*) filter (where within) from answer"
        ).fetchone()
        assert counted is not None
        values, within = counted
    claimed = con.execute(f"select shows, holds from ({sql})").fetchall()
    shows, direction = claimed[0] if claimed else (None, None)
    verdict, basis = _judge(manifest, claim, direction, values, within)
    return Finding(
        query=asked.name,
        title=asked.title,
        origin=asked.origin,
        paper=asked.finding,
        release=shows,
        verdict=verdict,
        basis=basis,
        direction=direction,
        values=values,
        values_within=within,
    )


def examine(
    release: str,
    *,
    audits: bool = False,
    memory_limit: str | None = None,
) -> list[Finding]:
    """Every finding on a release, in the order of the queries.

    Args:
        release: folder or Hub address.
        audits: also those that read every filter.
        memory_limit: as in `views.open_views`.

    Raises:
        UsageError: no release there.
        BuilderError: a query or claim of the project does not run.
    """
    opened = open_release(hub.release_address(release))
    with open_views(opened, memory_limit=memory_limit) as con:
        found = []
        for asked in catalog.list_findings() + (catalog.list_claimed_audits() if audits else []):
            try:
                found.append(examine_one(con, opened.manifest, asked))
            except duckdb.Error as e:
                raise BuilderError(f"{asked.name}: {e}") from None
        return found


def exit_code(found: list[Finding]) -> int:
    """1 where a finding fails on the paper's own models, else 0."""
    return EXIT_FAILURE if any(f.verdict == FAILS for f in found) else EXIT_OK


def as_json(found: list[Finding]) -> dict[str, Any]:
    """`{"findings": [...]}`, for `--json`."""
    return {"findings": [asdict(f) for f in found]}


def summary(found: list[Finding]) -> str:
    """How many findings hold, fail and so on, in one line."""
    counts = Counter(f.verdict for f in found)
    return ", ".join(f"{v}: {counts[v]}" for v in VERDICTS if counts[v])


def scope(threat_models: Iterable[str | None]) -> str | None:
    """Which robust models findings are of, by the threat model of each; None where all have one."""
    counts = Counter(t or "Linf" for t in threat_models)
    own = schema.studied(counts)
    if own is None or len(counts) == 1:
        return None
    others = ", ".join(f"{n} {t}" for t, n in sorted(counts.items()) if t != own)
    return (
        f"Figures and findings are of the {counts[own]} robust models against {own}, not of the "
        f"others ({others}). `builder query NAME --param threat_model=...` asks of those."
    )


def to_grid(found: list[Finding], *, explain: bool = False) -> Table:
    """For a terminal: the verdict in words, beside it the finding and what the release shows.

    Args:
        explain: also the query, and what the verdict rests on.
    """
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 1, 0))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for f in found:
        sign, style = _SIGNS[f.verdict]
        facts = Table.grid(padding=(0, 1, 0, 0))
        facts.add_column(style="dim", no_wrap=True)
        facts.add_column()
        facts.add_row("paper" if f.origin == "paper" else "claim", Text(f.paper))
        facts.add_row("here", Text(f.release or f"nothing: {f.basis}"))
        if explain:
            facts.add_row("judged", Text(f"{f.basis} ({f.query})"))
        lines = Table.grid()
        title = Text(f.title, style="bold")
        lines.add_row(title if f.origin == "paper" else title.append(" (ours)", style="not bold"))
        lines.add_row(facts)
        grid.add_row(Text(f"{sign} {f.verdict}", style=style), lines)
    return grid
