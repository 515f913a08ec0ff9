"""Steps of the demo's jobs: real work on the files of this project, with a result."""

from __future__ import annotations

import ast
import hashlib
import io
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PROGRAM_TIMEOUT: Final = 60.0
"""Maximum duration of a program that runs as a step, in seconds."""
_MAX_OUTPUT: Final = 4_000
"""Characters that are kept of a program's output."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of a step."""

    succeeded: bool
    output: str


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a job; ``do`` blocks until it is done."""

    title: str
    do: Callable[[], StepResult]


def python(title: str, root: Path, *arguments: str) -> Step:
    """Return a step that runs ``python`` in the checkout, and succeeds if it exits with 0."""

    def do() -> StepResult:
        command = [sys.executable, *arguments]
        try:
            process = subprocess.run(
                command, cwd=root, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            return StepResult(succeeded=False, output=f"took longer than {PROGRAM_TIMEOUT:.0f} s")
        output = (process.stdout + process.stderr).strip()[-_MAX_OUTPUT:]
        return StepResult(process.returncode == 0, output or f"exited with status {process.returncode}")

    return Step(title, do)


def modules(folder: Path) -> list[Path]:
    """Return the Python files in a folder and its subfolders, sorted."""
    return sorted(folder.rglob("*.py"))


def compiled(paths: Sequence[Path]) -> StepResult:
    """Compile each file in memory."""
    size = 0
    for path in paths:
        try:
            code = compile(path.read_bytes(), path.name, "exec")
        except SyntaxError as error:
            return StepResult(succeeded=False, output=f"SyntaxError: {error.msg} ({path.name}, line {error.lineno})")
        size += _size(code)
    return StepResult(succeeded=True, output=f"{len(paths)} modules compile to {size:,} bytes of bytecode")


def tokenized(path: Path) -> StepResult:
    """Count the tokens of a file by kind."""
    kinds = Counter(
        tokenize.tok_name[token.type] for token in tokenize.tokenize(io.BytesIO(path.read_bytes()).readline)
    )
    return StepResult(
        succeeded=True, output=", ".join(f"{count} {kind.lower()}" for kind, count in kinds.most_common(4))
    )


def hashed(path: Path) -> StepResult:
    """Compute the SHA-256 of a file."""
    return StepResult(succeeded=True, output=f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()} of {path.name}")


def counted(paths: Sequence[Path]) -> StepResult:
    """Count functions and lines, and find the longest function."""
    lines, functions = 0, []
    for path in paths:
        source = path.read_text()
        lines += source.count("\n")
        functions += [
            ((node.end_lineno or node.lineno) - node.lineno + 1, f"{path.name}:{node.name}")
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
    length, name = max(functions, default=(0, "none"))
    return StepResult(
        succeeded=True, output=f"{len(functions)} functions in {lines:,} lines; the longest is {name}, {length} lines"
    )


def documented(paths: Sequence[Path]) -> StepResult:
    """Check that every module and every public class and function has a docstring."""
    missing, count = [], 0
    for path in paths:
        tree = ast.parse(path.read_text())
        for node in (tree, *_public(tree)):
            count += 1
            if ast.get_docstring(node) is None:
                missing.append(f"{path.name}:{getattr(node, 'name', 'module')}")
    if missing:
        return StepResult(succeeded=False, output=f"no docstring: {', '.join(missing[:10])}")
    return StepResult(succeeded=True, output=f"{count} docstrings in {len(paths)} modules")


def unresolved(document: Any, part: Any) -> list[str]:
    """Return the ``$ref`` values in a part of a document that do not resolve."""
    return [ref for ref in _refs(part) if not _resolves(document, ref)]


def _refs(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(ref := node.get("$ref"), str):
            yield ref
        for value in node.values():
            yield from _refs(value)
    elif isinstance(node, list):
        for value in node:
            yield from _refs(value)


def _resolves(document: Any, ref: str) -> bool:
    node = document
    for key in ref.removeprefix("#/").split("/"):
        if not isinstance(node, dict) or key not in node:
            return False
        node = node[key]
    return True


def _size(code: Any) -> int:
    return len(code.co_code) + sum(_size(const) for const in code.co_consts if hasattr(const, "co_code"))


def _public(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
