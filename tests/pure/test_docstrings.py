"""Docstrings follow the code: every parameter that one explains is in the signature."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("src/taskherd", "tests", "examples", "benchmarks")
ARGUMENTS = re.compile(r"^Args:\n((?:    .*\n?|\n)+)", re.MULTILINE)
ATTRIBUTES = re.compile(r"^Attributes:\n((?:    .*\n?|\n)+)", re.MULTILINE)
ARGUMENT = re.compile(r"^    (\w+): ", re.MULTILINE)
EXPLAINED = re.compile(r"^``(\w+)``: ", re.MULTILINE)
SUBJECT = re.compile(r"(?:^|[.;] |\n)``(\w+)`` (?:is|are|has|contains|identifies|states|registers|waits|calls)\b")


def explained(docstring: str) -> set[str]:
    """Return the parameters that a function's docstring explains, in ``Args`` or as ``NAME``: ...."""
    arguments = ARGUMENTS.search(docstring)
    return {*EXPLAINED.findall(docstring), *(ARGUMENT.findall(arguments[1]) if arguments else ())}


def described(docstring: str) -> set[str]:
    """Return the members that a class's docstring describes, in ``Attributes`` or as the subject of a sentence."""
    attributes = ATTRIBUTES.search(docstring)
    return {*SUBJECT.findall(docstring), *(ARGUMENT.findall(attributes[1]) if attributes else ())}


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Return the names of a function's parameters."""
    signature = function.args
    variable = [each for each in (signature.vararg, signature.kwarg) if each is not None]
    return {each.arg for each in (*signature.posonlyargs, *signature.args, *signature.kwonlyargs, *variable)}


def members(definition: ast.ClassDef) -> set[str]:
    """Return a class's fields, attributes, methods and strings (enum values), and the parameters of ``__init__``."""
    names: set[str] = set()
    for node in ast.walk(definition):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                names |= {node.name} | (parameters(node) if node.name == "__init__" else set())
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Attribute(value=ast.Name(id="self"), attr=name):
                names.add(name)
            case ast.Constant(value=str(text)):
                names.add(text)
            case _:
                pass
    return names


def wrong_names(tree: ast.Module) -> set[str]:
    """Return the explained names that are not in the signature or class, each with its function or class."""
    wrong: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                names = explained(ast.get_docstring(node) or "") - parameters(node)
            case ast.ClassDef():
                names = described(ast.get_docstring(node) or "") - members(node)
            case _:
                continue
        wrong |= {f"{node.name}: {name}" for name in names}
    return wrong


def test_explained_parameters_exist() -> None:
    """A docstring explains no parameter, field or attribute that was renamed or removed."""
    wrong = {
        f"{path.relative_to(ROOT)}, {name}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for name in wrong_names(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert wrong == set()


def test_a_renamed_parameter_is_found() -> None:
    """The test above finds a name that is not in a signature, in each of the four forms."""
    source = '''
class Consumer:
    """A consumer. ``on_trouble`` is called on errors.

    Attributes:
        queue: its queue.
    """

    def read(self, count: int) -> None:
        """Read.

        ``limit``: how many.

        Args:
            count: how many.
            wait: how long.
        """
'''
    assert wrong_names(ast.parse(source)) == {"Consumer: on_trouble", "Consumer: queue", "read: limit", "read: wait"}
