"""The dimension of a PromQL expression, and the rates in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import promql_parser as promql

from checker import names
from checker.dimension import ANY, ONE, SECOND, Dimension, DimensionError, of

_RATES = {"rate", "irate", "increase"}
_SAME = {
    "abs", "ceil", "floor", "round", "clamp", "clamp_min", "clamp_max", "sort", "sort_desc", "label_replace",
    "label_join", "scalar", "vector", "avg_over_time", "min_over_time", "max_over_time", "last_over_time",
    "quantile_over_time", "delta", "idelta",
}  # fmt: skip
_COUNTS = {"changes", "resets", "count_over_time", "absent", "absent_over_time"}
_COMPARISONS = {"==", "!=", ">", "<", ">=", "<="}
_RECORDS = Mapping[str, Dimension]


def _vector_argument(call: Any) -> Any:
    """The argument that carries the values: not a number, not a string."""
    for argument in call.args:
        if not isinstance(argument, promql.NumberLiteral | promql.StringLiteral):
            return argument
    return call.args[0]


def _metric_of(node: Any) -> str:
    """The one metric inside an expression; DimensionError where there are several."""
    found = {s.name for s in selectors(node)}
    if len(found) != 1:
        raise DimensionError(f"expected one metric in {node.prettify()!r}, found {sorted(found)}")
    return str(found.pop())


def children(node: Any) -> list[Any]:
    """The expressions directly inside one."""
    if isinstance(node, promql.BinaryExpr):
        return [node.lhs, node.rhs]
    if isinstance(node, promql.Call):
        return list(node.args)
    if isinstance(node, promql.MatrixSelector):
        return [node.vector_selector]
    if isinstance(node, promql.AggregateExpr):
        return [e for e in (node.expr, node.param) if e is not None]
    return [node.expr] if hasattr(node, "expr") else []


def walk(node: Any) -> Iterator[Any]:
    yield node
    for child in children(node):
        yield from walk(child)


def selectors(node: Any) -> Iterator[Any]:
    """Every metric selector in an expression."""
    return (n for n in walk(node) if isinstance(n, promql.VectorSelector))


def rates(node: Any) -> Iterator[tuple[str, float]]:
    """(metric, range in seconds) of every rate, irate and increase."""
    for call in walk(node):
        if isinstance(call, promql.Call) and call.func.name in _RATES:
            matrix = call.args[0]
            seconds = matrix.range.total_seconds()
            yield from ((str(s.name), seconds) for s in selectors(matrix))


def dimension(node: Any, records: _RECORDS) -> Dimension:
    """The dimension of an expression's value. `records` holds those of recorded metrics.

    Raises DimensionError where joules are added to seconds, a gauge is rated, or a name tells nothing.
    """
    if isinstance(node, promql.NumberLiteral):
        return ANY if node.val == 0 else names.NUMBERS.get(node.val, ONE)
    if isinstance(node, promql.VectorSelector):
        name = str(node.name)
        return records[name] if name in records else names.metric(name)
    if isinstance(node, promql.BinaryExpr):
        return _binary(node, records)
    if isinstance(node, promql.AggregateExpr):
        inside = dimension(node.expr, records)
        return of(series=1) if node.prettify().startswith("count") else inside
    if isinstance(node, promql.Call):
        return _call(node, records)
    inner = children(node)
    if len(inner) != 1:
        raise DimensionError(f"cannot tell the dimension of {node.prettify()!r}")
    return dimension(inner[0], records)


def _binary(node: Any, records: _RECORDS) -> Dimension:
    left, right = dimension(node.lhs, records), dimension(node.rhs, records)
    operator = str(node.op)
    if operator == "*":
        return left * right
    if operator == "/":
        return left / right
    if operator in _COMPARISONS:
        bare = any(isinstance(side, promql.NumberLiteral) for side in (node.lhs, node.rhs))
        if not bare and not left.fits(right):
            raise DimensionError(f"{left} compared with {right} in {node.prettify()!r}")
        return left
    if operator in {"and", "unless"}:
        return left
    if not left.fits(right):
        raise DimensionError(f"{left} {operator} {right} in {node.prettify()!r}")
    return right if left.anything else left


def _call(node: Any, records: _RECORDS) -> Dimension:
    function = node.func.name
    if function == "histogram_quantile":
        return names.histogram_value(_metric_of(node.args[1]))
    argument = _vector_argument(node)
    if function in _RATES:
        name = _metric_of(argument)
        if not names.COUNTER.search(name):
            raise DimensionError(f"{function} of {name}, which is not a counter")
        inside = dimension(argument, records)
        return inside if function == "increase" else inside / SECOND
    if function == "deriv":
        return dimension(argument, records) / SECOND
    if function in _COUNTS:
        return ONE
    if function == "time":
        return SECOND
    if function in _SAME:
        return dimension(argument, records)
    raise DimensionError(f"the checker does not know the function {function}")
