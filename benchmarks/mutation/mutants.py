"""Mutants of a module: small changes of its syntax tree, each of which a test should notice.

What is never mutated, by rule: texts for people (docstrings, f-strings, texts with a space, the arguments of
`raise`), annotations, decorators, imports, `__slots__`, and what only a type checker reads.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

_Node = TypeVar("_Node", bound=ast.AST)
_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_NAMES = {
    "min": "max",
    "max": "min",
    "minimum": "maximum",
    "maximum": "minimum",
    "any": "all",
    "all": "any",
    "zeros": "ones",
    "zeros_like": "ones_like",
    "popleft": "pop",
}
_NEVER = (ast.Import, ast.ImportFrom, ast.JoinedStr, ast.Raise)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: the `number`-th node of the module's tree, replaced by its `variant`-th replacement.

    `lines` are those of the statement (of its head, where it has a body). `function_line` is the first line
    of the function that it lies in; None where it is part of the module or of a class, so that only a new
    import shows it.
    """

    path: Path
    number: int
    variant: int
    line: int
    lines: tuple[int, int]
    function_line: int | None
    change: str


@dataclass(frozen=True, slots=True)
class _Place:
    parent: ast.AST
    field: str
    index: int | None

    def put(self, new: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, new)
        else:
            getattr(self.parent, self.field)[self.index] = new


def mutants(path: Path) -> list[Mutant]:
    """All mutants of a module, in the order of its text."""
    found = []
    for number, (node, place, statement, function_line) in enumerate(
        _nodes(ast.parse(path.read_text("utf-8")))
    ):
        body = getattr(statement, "body", None)
        last = body[0].lineno - 1 if isinstance(body, list) else statement.end_lineno or statement.lineno
        lines = (statement.lineno, max(last, statement.lineno))
        line = getattr(node, "lineno", statement.lineno)
        for variant, new in enumerate(_replacements(node, place)):
            change = f"{_short(node)}  ->  {_short(new)}"
            found.append(Mutant(path, number, variant, line, lines, function_line, change))
    return sorted(found, key=lambda mutant: (mutant.line, mutant.number, mutant.variant))


def mutated(mutant: Mutant) -> ast.Module:
    """The module's tree with the change in it."""
    tree = ast.parse(mutant.path.read_text("utf-8"))
    node, place, _, _ = list(_nodes(tree))[mutant.number]
    new = list(_replacements(node, place))[mutant.variant]
    place.put(ast.copy_location(new, node))
    return ast.fix_missing_locations(tree)


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 90 else text[:87] + "..."


def _nodes(tree: ast.Module) -> Iterator[tuple[ast.AST, _Place, ast.stmt, int | None]]:
    """(node, its place, its statement, the first line of its outermost function) of all that may change."""

    def below(
        node: ast.AST, statement: ast.stmt | None, function_line: int | None
    ) -> Iterator[tuple[ast.AST, _Place, ast.stmt, int | None]]:
        for field, value in ast.iter_fields(node):
            if field in {"annotation", "returns", "decorator_list", "bases", "keywords"} and isinstance(
                node, (ast.FunctionDef, ast.ClassDef, ast.arg, ast.AnnAssign)
            ):
                continue
            inside = function_line
            if isinstance(node, ast.FunctionDef) and field == "body" and function_line is None:
                inside = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            for index, child in enumerate(value if isinstance(value, list) else [value]):
                if not isinstance(child, ast.AST) or _is_left_out(child):
                    continue
                at = child if isinstance(child, ast.stmt) else statement
                place = _Place(node, field, index if isinstance(value, list) else None)
                if at is not None:
                    yield child, place, at, inside
                if not isinstance(child, _NEVER):
                    yield from below(child, at, inside)

    yield from below(tree, None, None)


def _is_left_out(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) in {"__slots__", "__all__"}
    return isinstance(node, (ast.Import, ast.ImportFrom))


def _replacements(node: ast.AST, place: _Place) -> Iterator[ast.AST]:  # noqa: PLR0912
    match node:
        case ast.Compare():
            for at, op in enumerate(node.ops):
                for other in _COMPARISONS[type(op)]:
                    yield _with(node, ops=[*node.ops[:at], other(), *node.ops[at + 1 :]])
        case ast.BinOp() if type(node.op) in _OPERATORS:
            yield _with(node, op=_OPERATORS[type(node.op)]())
        case ast.AugAssign():
            yield ast.Pass()
            if type(node.op) in _OPERATORS:
                yield _with(node, op=_OPERATORS[type(node.op)]())
        case ast.BoolOp():
            yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
            for at in range(len(node.values)):
                rest = [value for index, value in enumerate(node.values) if index != at]
                yield rest[0] if len(rest) == 1 else _with(node, values=rest)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant():
            yield from _constants(node)
        case ast.Return(value=ast.expr()) if not (
            isinstance(node.value, ast.Constant) and node.value.value is None
        ):
            yield ast.Return(ast.Constant(None))
        case ast.Raise():
            yield ast.Pass()
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Assign() if isinstance(node.targets[0], (ast.Attribute, ast.Subscript)):
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.Call():
            for at in range(len(node.keywords)):
                yield _with(node, keywords=[*node.keywords[:at], *node.keywords[at + 1 :]])
            if isinstance(node.func, ast.Name) and node.func.id in _NAMES:
                yield _with(node, func=ast.Name(_NAMES[node.func.id], ast.Load()))
            elif isinstance(node.func, ast.Attribute) and node.func.attr in _NAMES:
                yield _with(node, func=_with(node.func, attr=_NAMES[node.func.attr]))
    is_condition = place.field == "test" and isinstance(place.parent, (ast.If, ast.While, ast.IfExp))
    if is_condition and isinstance(node, (ast.Name, ast.Attribute, ast.Call, ast.BoolOp)):
        yield ast.UnaryOp(ast.Not(), copy.deepcopy(node))


def _constants(node: ast.Constant) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
    elif isinstance(value, float):
        yield ast.Constant(2.0 * value if value else 1.0)
    elif isinstance(value, str) and " " not in value:
        yield ast.Constant("XX" + value)


def _with(node: _Node, **fields: object) -> _Node:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new
