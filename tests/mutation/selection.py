"""The tests to run for a mutation: those that execute the changed line, the cheapest first.

A line outside of functions is executed by every import, and so is a function that it calls. Its tests are those that
execute a function which uses what the line defines, directly or through other definitions, and those named after the
module, which may use it by themselves.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from tests.mutation.coverage_map import SOURCE_READERS, TestMap
from tests.mutation.source import Mutation

MAX_TESTS = 250
"""Maximum number of tests for one mutation."""

MAX_PURE = 150
"""Maximum number of pure tests among them, where there are others: they do not execute SQL."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class _Users:
    """The names that a module's functions and definitions use."""

    functions: list[tuple[Function, frozenset[str]]]
    definitions: list[tuple[frozenset[str], frozenset[str]]]
    """What each statement outside of functions defines, and the names in it."""
    values: list[tuple[frozenset[str], frozenset[str]]]
    """Those of them that are no classes: what they call is executed by the import."""
    imported: frozenset[str]
    """The modules from which names are imported, and the modules that are imported, relative to taskherd."""


class Selector:
    """Chooses tests, from what was measured and from the names that code uses."""

    def __init__(self, root: Path, measured: TestMap) -> None:
        self._root = root
        self._measured = measured

    def tests(self, mutation: Mutation) -> list[str]:
        """Return the tests to run, first those that are known to execute the line.

        Of each kind the pure ones come first, then those named after the module, the fastest first.
        """
        tree = ast.parse((self._root / mutation.path).read_text(encoding="utf-8"))
        executing, using = (set(filter(self._is_usable, tests)) for tests in self._covering(mutation, tree))
        stem = PurePosixPath(mutation.path).stem.removesuffix("s")
        if not executing:
            named = [test for test in self._measured.seconds if f"/test_{stem}" in test]
            using |= set(filter(self._is_usable, named))

        def order(test: str) -> tuple[bool, bool, bool, float, str]:
            file = test.partition("::")[0]
            return test not in executing, not _is_pure(test), stem not in file, self._measured.seconds[test], test

        ordered = sorted(executing | using, key=order)
        others = sum(not _is_pure(test) for test in ordered)
        pure = [test for test in ordered if _is_pure(test)][: max(MAX_PURE, MAX_TESTS - others)]
        chosen = set(pure)
        return [test for test in ordered if test in chosen or not _is_pure(test)][:MAX_TESTS]

    def _is_usable(self, test: str) -> bool:
        measured = self._measured
        return test in measured.seconds and test not in measured.broken and not _decides_nothing(test)

    def _covering(self, mutation: Mutation, tree: ast.Module) -> tuple[set[str], set[str]]:
        """Return the tests that execute the line, and those that use what an import has made by executing it."""
        statement, function, around = innermost(tree, mutation.line)
        if function is not None:
            tests = self._measured.of_lines(mutation.path, statement.lineno, last_line(statement))
            made = [self._of_users(path, names) for path, names in self._made_by(mutation.path, function.name)]
            return tests, set().union(*made)
        names = defined(statement) | {node.name for node in around if isinstance(node, ast.ClassDef)}
        return set(), self._of_users(mutation.path, names) or self._of_functions(mutation.path, tree)

    def _made_by(self, home: str, name: str) -> Iterator[tuple[str, set[str]]]:
        """Yield what modules define by calling a function: no test executes that call."""
        for path, users in self._modules.items():
            if path == home or users.imported & _module_names(home):
                for defines, used in users.values:
                    if name in used:
                        yield path, set(defines)

    def _of_functions(self, path: str, tree: ast.Module) -> set[str]:
        """Return the tests that execute any function of a module."""
        functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
        return {test for function in functions for test in self._of_body(path, function)}

    def _of_body(self, path: str, function: Function) -> set[str]:
        first, last = function.body[0].lineno, function.body[-1].end_lineno or 0
        return self._measured.of_lines(path, first, last)

    def _of_users(self, path: str, names: set[str]) -> set[str]:
        """Return the tests that execute a function which uses one of the names, in this module or in its importers."""
        tests: set[str] = set()
        seen: set[tuple[str, str]] = set()
        open_names = [(path, name) for name in names]
        while open_names:
            home, name = open_names.pop()
            if (home, name) in seen:
                continue
            seen.add((home, name))
            for user_path, users in self._modules.items():
                if user_path != home and not users.imported & _module_names(home):
                    continue
                for function, used in users.functions:
                    if name in used or (user_path == home and name == function.name):
                        tests |= self._of_body(user_path, function)
                for defines, used in users.definitions:
                    if name in used:
                        open_names += [(user_path, each) for each in defines]
        return tests

    @cached_property
    def _modules(self) -> dict[str, _Users]:
        return {
            path.relative_to(self._root).as_posix(): _users(ast.parse(path.read_text(encoding="utf-8")))
            for path in self._root.rglob("*.py")
        }


def innermost(tree: ast.Module, line: int) -> tuple[ast.stmt, Function | None, list[ast.stmt]]:
    """Return the innermost statement at a line, the function in whose body it is, and the statements around it.

    A function's decorators and defaults belong to what is around the function.
    """
    around: list[ast.stmt] = []
    function: Function | None = None
    level: Iterable[ast.stmt] = tree.body
    while inside := next((node for node in level if _first_line(node) <= line <= (node.end_lineno or 0)), None):
        around.append(inside)
        if isinstance(inside, Function):
            if line < inside.body[0].lineno:
                break
            function = inside
        level = list(_statements_in(inside))
    return around[-1], function, around[:-1]


def qualified_name(tree: ast.Module, line: int) -> str:
    """Return the names of the classes and functions around a line, with dots; empty outside of them."""
    statement, _, around = innermost(tree, line)
    return ".".join(node.name for node in (*around, statement) if isinstance(node, Function | ast.ClassDef))


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, Function | ast.ClassDef) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _statements_in(statement: ast.stmt) -> Iterator[ast.stmt]:
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.stmt):
            yield child
        elif isinstance(child, ast.excepthandler | ast.match_case):
            yield from (each for each in ast.iter_child_nodes(child) if isinstance(each, ast.stmt))


def last_line(statement: ast.stmt) -> int:
    """Return the last line of a statement, without the statements inside it."""
    inner = [child.lineno for child in _statements_in(statement)]
    return max(statement.lineno, min(inner) - 1) if inner else statement.end_lineno or statement.lineno


def defined(statement: ast.stmt) -> set[str]:
    """Return the names that a statement defines."""
    match statement:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case _:
            return set()


def _users(tree: ast.Module) -> _Users:
    functions = [(node, _names(node)) for node in ast.walk(tree) if isinstance(node, Function)]
    statements = [node for node in tree.body if not isinstance(node, Function)]
    definitions = [(frozenset(defined(node)), _names(node)) for node in statements if defined(node)]
    values = [
        (frozenset(defined(node)), _names(node))
        for node in statements
        if defined(node) and not isinstance(node, ast.ClassDef)
    ]
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    imported = {node.module or "" for node in imports}
    imported |= {f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    return _Users(functions, definitions, values, frozenset(imported))


def _names(node: ast.AST) -> frozenset[str]:
    return frozenset(
        child.id if isinstance(child, ast.Name) else child.attr
        for child in ast.walk(node)
        if isinstance(child, ast.Name | ast.Attribute)
    )


def _module_names(path: str) -> frozenset[str]:
    parts = PurePosixPath(path).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return frozenset({".".join(("taskherd", *parts))})


def _is_pure(test: str) -> bool:
    return test.startswith("tests/pure/")


def _decides_nothing(test: str) -> bool:
    return test.startswith(SOURCE_READERS)
