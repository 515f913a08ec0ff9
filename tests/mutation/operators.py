"""The mutations of Python code: each operator yields small changes of behaviour that a test should notice.

Not mutated, since no behaviour depends on it: annotations, docstrings, logging, texts, assertions, failpoints, how
dataclasses are made, and how long a wait is.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from tests.mutation import sql
from tests.mutation.source import Mutation, Source

_COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: (r"is\s+not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
}
_ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: (r"\+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: (r"\*", "+"),
    ast.FloorDiv: ("//", "*"),
    ast.Div: ("/", "*"),
    ast.Mod: ("%", "+"),
}
_OPPOSITES = {"min": "max", "max": "min", "any": "all", "all": "any"}
_QUERY_METHODS = {"where", "order_by", "limit", "with_for_update", "on_conflict_do_nothing", "on_conflict_do_update"}
_EMPTY = {
    "str": '""', "bytes": 'b""', "int": "0", "list": "[]", "dict": "{}", "set": "set()", "frozenset": "frozenset()",
}  # fmt: skip

_SILENT = re.compile(r"(^|\.)_?(log|logger|logging|warnings|failpoint|tracing|structlog|assert_never)(\.|$)")
"""Calls that write logs or traces, or that only tests and type checkers use."""
_TRIVIAL = {"isinstance", "issubclass", "getattr", "setattr", "hasattr", "cast", "TypeVar", "NewType", "field"}
_SYMMETRIC = {"max", "min"}
"""Functions whose arguments may be in any order."""
_MADE = {
    "daemon", "description", "examples", "exc_info", "frozen", "kw_only", "name", "repr", "slots", "strict", "title",
}  # fmt: skip
"""Keyword arguments without a behaviour of their own."""
_WAITS = re.compile(
    r"timeout|interval|delay|seconds|after|every|grace|backoff|wait|period|ttl|poll|sleep|rounds|chunk|_bytes_at_once",
    re.IGNORECASE,
)
"""Names of what is waited for or read at once: one unit more or less changes nothing that a test could state."""


def mutations(source: Source) -> list[Mutation]:
    """Return every mutation of a file, in the order of their places."""
    return sorted(set(_Finder(source).find()))


class _Finder:
    def __init__(self, source: Source) -> None:
        self._source = source

    def find(self) -> Iterator[Mutation]:
        yield from self._statements(self._source.tree.body, returns=None)

    def _statements(self, statements: Sequence[ast.stmt], returns: ast.expr | None) -> Iterator[Mutation]:
        for statement in statements:
            yield from self._statement(statement, returns)

    def _statement(self, statement: ast.stmt, returns: ast.expr | None) -> Iterator[Mutation]:
        if _is_without_behaviour(statement):
            return
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                for default in (*statement.args.defaults, *statement.args.kw_defaults):
                    if default is not None:
                        yield from self._expression(default)
                yield from self._statements(statement.body, statement.returns)
            case ast.ClassDef():
                yield from self._statements(statement.body, None)
            case _:
                yield from self._dropped(statement)
                yield from self._changed(statement, returns)
                yield from self._inner(statement, returns)

    def _inner(self, statement: ast.stmt, returns: ast.expr | None) -> Iterator[Mutation]:
        """Yield the mutations of the expressions and statements inside a statement."""
        for name, field in ast.iter_fields(statement):
            for child in field if isinstance(field, list) else [field]:
                match child:
                    case ast.stmt():
                        yield from self._statement(child, returns)
                    case ast.expr() if name != "annotation":
                        yield from self._expression(child)
                    case ast.withitem():
                        yield from self._expression(child.context_expr)
                    case ast.excepthandler():
                        yield from self._inner_handler(child, returns)
                    case ast.match_case():
                        if child.guard is not None:
                            yield from self._negated(child.guard)
                            yield from self._expression(child.guard)
                        yield from self._statements(child.body, returns)
                    case _:
                        pass

    def _inner_handler(self, handler: ast.excepthandler, returns: ast.expr | None) -> Iterator[Mutation]:
        assert isinstance(handler, ast.ExceptHandler)
        first, last = handler.body[0], handler.body[-1]
        if not isinstance(first, ast.Raise) or first.exc is not None:
            yield self._replace("exception", self._source.start(first), self._source.end(last), "raise")
        if isinstance(handler.type, ast.Tuple):
            yield from self._without_each("exception", handler.type.elts)
        yield from self._statements(handler.body, returns)

    def _dropped(self, statement: ast.stmt) -> Iterator[Mutation]:
        match statement:
            case (
                ast.Expr(value=ast.Call() | ast.Await())
                | ast.AugAssign()
                | ast.Delete()
                | ast.Raise()
                | ast.Continue()
                | ast.Break()
                | ast.Return(value=None)
                | ast.Assign(targets=[ast.Attribute() | ast.Subscript()])
                | ast.AnnAssign(target=ast.Attribute() | ast.Subscript(), value=ast.expr())
            ):
                yield self._replace_node("dropped statement", statement, "pass")
            case _:
                pass

    def _changed(self, statement: ast.stmt, returns: ast.expr | None) -> Iterator[Mutation]:
        match statement:
            case ast.If(test=test) | ast.While(test=test):
                yield from self._negated(test)
            case ast.Return(value=ast.expr() as result):
                yield from self._returned(result, returns)
            case ast.Try(finalbody=[first, *_] as body):
                yield self._replace("exception", self._source.start(first), self._source.end(body[-1]), "pass")
            case ast.AugAssign(op=ast.Add() | ast.Sub() as operator, target=target, value=value):
                token = "+=" if isinstance(operator, ast.Add) else "-="
                other = "-=" if isinstance(operator, ast.Add) else "+="
                yield from self._token("arithmetic", target, value, re.escape(token), other)
            case _:
                pass

    def _returned(self, result: ast.expr, returns: ast.expr | None) -> Iterator[Mutation]:
        annotation = "" if returns is None else ast.unparse(returns)
        if isinstance(result, ast.Constant) or not annotation:
            return
        if annotation == "bool":
            yield from self._negated(result)
            return
        members = [member.strip() for member in annotation.split(" | ")] if "[" not in annotation else [annotation]
        empty = _EMPTY.get(annotation.split("[")[0])
        if "None" in members or annotation.endswith(" | None"):
            yield self._replace_node("return value", result, "None")
        elif empty is not None and ast.unparse(result) != empty:
            yield self._replace_node("return value", result, empty)

    def _negated(self, test: ast.expr) -> Iterator[Mutation]:
        """Yield a condition's negation, unless another operator does the same."""
        match test:
            case ast.Compare(ops=[_]) | ast.UnaryOp(op=ast.Not()) | ast.Constant():
                return
            case _:
                yield self._replace_node("negated condition", test, f"not ({self._source.of(test)})")

    def _expression(self, node: ast.expr) -> Iterator[Mutation]:
        if isinstance(node, ast.Call) and (_is_silent(node) or _is_wait_call(node)):
            return
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            yield from self._text(node)
            return
        yield from self._own(node)
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.expr():
                    yield from self._expression(child)
                case ast.keyword() if child.arg not in _MADE and not (child.arg and _WAITS.search(child.arg)):
                    yield from self._expression(child.value)
                case ast.comprehension():
                    yield from self._expression(child.iter)
                    for condition in child.ifs:
                        yield from self._negated(condition)
                        yield from self._expression(condition)
                case _:
                    pass

    def _own(self, node: ast.expr) -> Iterator[Mutation]:
        match node:
            case ast.Compare():
                yield from self._compared(node)
            case ast.BoolOp():
                yield from self._combined(node)
            case ast.UnaryOp(op=ast.Not()):
                start = self._source.start(node)
                yield self._replace("boolean", start, start + 3, "")
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _ARITHMETIC:
                if not (_is_literal(left) or _is_literal(right)):
                    yield from self._token("arithmetic", left, right, *_ARITHMETIC[type(operator)])
            case ast.IfExp(test=test):
                yield from self._negated(test)
            case ast.Await(value=value):
                yield self._replace("dropped await", self._source.start(node), self._source.start(value), "")
            case ast.Constant(value=value):
                yield from self._constant(node, value)
            case ast.Call():
                yield from self._called(node)
            case _:
                pass

    def _compared(self, node: ast.Compare) -> Iterator[Mutation]:
        sides = [node.left, *node.comparators]
        for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
            yield from self._token("comparison", left, right, *_COMPARISONS[type(operator)])

    def _combined(self, node: ast.BoolOp) -> Iterator[Mutation]:
        token, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield from self._token("boolean", left, right, rf"\b{token}\b", other)
        neutral = "True" if isinstance(node.op, ast.And) else "False"
        for value in node.values:
            if not any(isinstance(child, ast.NamedExpr) for child in ast.walk(value)):
                yield self._replace_node("dropped condition", value, neutral)

    def _constant(self, node: ast.Constant, value: object) -> Iterator[Mutation]:
        if value is True or value is False:
            yield self._replace_node("constant", node, str(not value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield self._replace_node("constant", node, repr(value + 1))

    def _called(self, node: ast.Call) -> Iterator[Mutation]:
        match node.func:
            case ast.Name(id=name) if name in _OPPOSITES:
                yield self._replace_node("opposite", node.func, _OPPOSITES[name])
            case ast.Name(id="suppress"):
                yield from self._without_each("exception", node.args)
            case ast.Attribute(value=value, attr=attr) if attr in _QUERY_METHODS:
                yield self._replace("sql construct", self._source.end(value), self._source.end(node), "")
            case _:
                pass
        if isinstance(node.func, ast.Name) and node.func.id in _TRIVIAL | _SYMMETRIC:
            return
        for first, second in zip(node.args, node.args[1:], strict=False):
            texts = self._source.of(first), self._source.of(second)
            if texts[0] != texts[1] and not any(isinstance(each, ast.Starred) for each in (first, second)):
                gap = self._source.between(self._source.end(first), self._source.start(second))
                yield self._replace(
                    "swapped arguments",
                    self._source.start(first),
                    self._source.end(second),
                    f"{texts[1]}{gap}{texts[0]}",
                )

    def _text(self, node: ast.expr) -> Iterator[Mutation]:
        text = self._source.of(node)
        if sql.SQL.search(sql.mask(text)):
            base = self._source.start(node)
            for operator, start, end, replacement in sql.changes(text):
                first, last = len(text[:start].encode()), len(text[:end].encode())
                yield self._replace(operator, base + first, base + last, replacement)

    def _without_each(self, operator: str, nodes: Sequence[ast.expr]) -> Iterator[Mutation]:
        """Yield the list without one of its members, for each of them."""
        for node in nodes:
            others = [self._source.of(other) for other in nodes if other is not node]
            text = ", ".join(others) + ("," if len(others) == 1 else "")
            yield self._replace(operator, self._source.start(nodes[0]), self._source.end(nodes[-1]), text)

    def _token(self, operator: str, left: ast.expr, right: ast.expr, token: str, other: str) -> Iterator[Mutation]:
        """Yield the replacement of the operator between two expressions."""
        start, end = self._source.end(left), self._source.start(right)
        gap = self._source.between(start, end)
        match = re.search(token, gap)
        if match is not None:
            place = start + len(gap[: match.start()].encode())
            yield self._replace(operator, place, place + len(match[0]), other)

    def _replace_node(self, operator: str, node: ast.expr | ast.stmt, replacement: str) -> Mutation:
        return self._replace(operator, self._source.start(node), self._source.end(node), replacement)

    def _replace(self, operator: str, start: int, end: int, replacement: str) -> Mutation:
        return self._source.mutation(operator, start, end, replacement)


def _is_without_behaviour(statement: ast.stmt) -> bool:
    """Return whether no behaviour of the running system depends on the statement."""
    match statement:
        case ast.FunctionDef(name="__repr__" | "__str__") | ast.Assert() | ast.Import() | ast.ImportFrom():
            return True
        case (
            ast.If(test=ast.Name(id="TYPE_CHECKING"))
            | ast.Assign(targets=[ast.Name(id="__all__" | "__slots__")])
            | ast.Expr(value=ast.Constant())
        ):
            return True
        case ast.Assign() | ast.AnnAssign():
            return _is_wait(statement)
        case ast.Expr(value=value):
            return _is_silent(value)
        case _:
            return False


def _is_silent(node: ast.expr) -> bool:
    """Return whether the expression is a call that only logs, traces or serves tests."""
    call = node.value if isinstance(node, ast.Await) else node
    return isinstance(call, ast.Call) and bool(_SILENT.search(_dotted(call.func)))


def _is_wait_call(node: ast.Call) -> bool:
    """Return whether the call waits, and its arguments say only how long."""
    return _dotted(node.func).rpartition(".")[2] in {"sleep", "timeout", "timeout_at", "call_later"}


def _is_wait(statement: ast.Assign | ast.AnnAssign) -> bool:
    """Return whether the statement names a constant that says how long something takes."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    names = [target.id if isinstance(target, ast.Name) else "" for target in targets]
    return all(name.isupper() and _WAITS.search(name) for name in names)


def _is_literal(node: ast.expr) -> bool:
    """Return whether the node is a text, list or tuple, for which only ``+`` is defined."""
    is_number = isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    return isinstance(node, ast.Constant | ast.JoinedStr | ast.List | ast.Tuple) and not is_number


def _dotted(node: ast.expr) -> str:
    """Return a name with dots, as far as it is one."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            return f"{_dotted(value)}.{attr}"
        case ast.Call(func=func):
            return _dotted(func)
        case _:
            return ""
