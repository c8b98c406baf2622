"""The project's SQL, written for DuckDB, as Spark's: by sqlglot, from the same files.

Views and macros of queries/views.sql are written out where a query uses them, for Spark has no
macros. What sqlglot carries over unchanged, though it means something else to Spark, has a rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import sqlglot
from sqlglot import exp
from sqlglot.dialects import Spark

from builder.errors import UsageError
from builder.files import project_file

_SUM = "aggregate({0}, 0D, (x_, y_) -> x_ + y_)"
_FILLED = "transform({0}, x_ -> if(x_ = 0, 1.1920928955078125e-07D, double(x_)))"
_SHARES = f"transform({_FILLED}, z_ -> z_ / {_SUM.format(_FILLED)})"

BY_HAND = {
    "isfinite": (("number",), "abs(number) < double('infinity')"),
    "list_dot_product": (("a", "b"), _SUM.format("zip_with(a, b, (x_, y_) -> x_ * y_)")),
    "divergence": (
        ("counts_a", "counts_b"),
        "if(array_max(counts_a) > 0 and array_max(counts_b) > 0, "
        + _SUM.format(
            f"zip_with({_SHARES.format('counts_a')}, {_SHARES.format('counts_b')}, "
            "(x_, y_) -> (x_ - y_) * ln(x_ / y_))"
        )
        + ", null)",
    ),
}
"""What sqlglot cannot do, in Spark's words: parameters, and an expression.

`isfinite` and `list_dot_product` are functions of DuckDB that it does not know. `divergence` is a
macro of views.sql: a SELECT over lists that are aggregates of the query around it, and Spark has no
such subquery.
"""


@dataclass(frozen=True)
class _Macro:
    """A view, or a macro: names of its parameters, and the tree that stands for it."""

    params: tuple[str, ...]
    body: exp.Expression


@cache
def _definitions() -> dict[str, _Macro]:
    """Views and macros by name; not the views that are files."""
    found = {}
    text = (project_file("queries") / "views.sql").read_text(encoding="utf-8")
    for statement in sqlglot.parse(text, dialect="duckdb"):
        assert isinstance(statement, exp.Create)
        if not statement.find(exp.ReadParquet):
            heading = statement.this
            name = (
                heading.this.name if isinstance(heading, exp.UserDefinedFunction) else heading.name
            )
            params = tuple(p.name for p in heading.expressions)
            found[name] = _Macro(params, statement.expression)
    for name, (params, text) in BY_HAND.items():
        found[name] = _Macro(params, exp.paren(sqlglot.parse_one(text, dialect="spark")))
    return found


def to_spark(name: str, sql: str, variables: Mapping[str, str]) -> str:
    """One SELECT for DuckDB as one SELECT for Spark, over the tables of a release.

    Args:
        name: of the query, for messages.
        sql: the SELECT; it may use what queries/views.sql defines.
        variables: values of `getvariable('name')` and `$name`; null where absent.

    Raises:
        UsageError: sqlglot cannot read it.
    """
    try:
        tree = sqlglot.parse_one(sql, dialect="duckdb")
    except sqlglot.ParseError as e:
        raise UsageError(f"{name}: not understood by sqlglot: {str(e).splitlines()[0]}") from None
    own = {cte.alias for cte in tree.find_all(exp.CTE)}
    known = {name: macro for name, macro in _definitions().items() if name not in own}
    tree = _written_out(tree, known, variables)
    for rule in _RULES:
        tree = tree.transform(rule)
    generator = Spark().generator(comments=False)
    generator.EXPRESSIONS_WITHOUT_NESTED_CTES = set()  # Spark has them; moved up, names would clash
    text: str = generator.generate(tree)
    return text


def _written_out(
    tree: exp.Expression, known: Mapping[str, _Macro], variables: Mapping[str, str]
) -> exp.Expression:
    """A tree without variables, macros and views: each replaced by what it stands for."""

    def value(name: str) -> exp.Expression:
        return exp.Literal.string(variables[name]) if name in variables else exp.null()

    def stand_in(macro: _Macro, arguments: list[exp.Expression]) -> exp.Expression:
        given = dict(zip(macro.params, arguments, strict=True))

        def filled(node: exp.Expression) -> exp.Expression:
            is_param = isinstance(node, exp.Column) and not node.table and node.name in given
            return given[node.name].copy() if is_param else node

        return _written_out(macro.body.copy().transform(filled), known, variables)

    def step(node: exp.Expression) -> exp.Expression:
        if isinstance(node, exp.Placeholder | exp.Parameter):
            return value(node.name)
        if isinstance(node, exp.Table):
            call = node.this
            macro = known.get(call.name.lower())
            if macro is None:
                return node
            select = stand_in(macro, call.expressions).unnest()
            alias = node.args.get("alias") or exp.TableAlias(this=exp.to_identifier(call.name))
            return exp.Subquery(this=select, alias=alias)
        if isinstance(node, exp.Anonymous) and node.name.lower() == "getvariable":
            return value(node.expressions[0].name)
        if isinstance(node, exp.Anonymous) and node.name.lower() in known:
            return stand_in(known[node.name.lower()], node.expressions)
        return node

    return tree.transform(step)


def _from_one(node: exp.Expression) -> exp.Expression:
    """DuckDB counts the elements of a list from 1, and has null beyond its end."""
    if not isinstance(node, exp.Bracket) or node.expressions[0].is_string:
        return node
    (index,) = node.expressions
    if index.is_int:  # sqlglot has subtracted one from literals, and only from those
        index = exp.Literal.number(int(index.name) + 1)
    return exp.func("try_element_at", node.this, exp.cast(index, "int"))


def _in_order(node: exp.Expression) -> exp.Expression:
    """`list(x order by k) filter (where c)`: sqlglot drops the order, for collect_list has none."""
    listed = node.this if isinstance(node, exp.Filter) else node
    if not isinstance(listed, exp.ArrayAgg) or not isinstance(listed.this, exp.Order):
        return node
    value, keys = listed.this.this, listed.this.expressions
    named = [exp.alias_(key.this, f"k{i}") for i, key in enumerate(keys)]
    listed.set("this", exp.func("struct", *named, exp.alias_(value, "v")))
    pairs = exp.func("array_sort", node.copy())
    if all(key.args.get("desc") for key in keys):
        pairs = exp.func("reverse", pairs)
    elif any(key.args.get("desc") for key in keys):
        raise UsageError("a list in both directions at once has no counterpart in Spark.")
    pair = exp.to_identifier("pair_")
    return exp.func(
        "transform", pairs, exp.Lambda(this=exp.column("v", "pair_"), expressions=[pair])
    )


def _range(node: exp.Expression) -> exp.Expression:
    """The one column of `range(…)` is called so in DuckDB, and `id` in Spark."""
    if not isinstance(node, exp.Table) or not isinstance(node.this, exp.GenerateSeries):
        return node
    series = node.this
    return exp.Table(
        this=exp.Anonymous(this="range", expressions=[series.args["start"], series.args["end"]]),
        alias=exp.TableAlias(
            this=exp.to_identifier(node.alias or "range"), columns=[exp.to_identifier("range")]
        ),
    )


def _plain_with(node: exp.Expression) -> exp.Expression:
    """`as not materialized` is a word to DuckDB alone."""
    if isinstance(node, exp.CTE):
        node.set("materialized", None)
    return node


_RULES = (_plain_with, _from_one, _in_order, _range)
