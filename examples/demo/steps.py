"""Single steps of real work over this project's own files; each says whether it went well, and what it found."""

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

MAX_PROGRAM: Final = 60.0
"""Seconds that a program run as a step may take."""
_MAX_OUTPUT: Final = 4_000


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step."""

    succeeded: bool
    output: str


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a job; `do` blocks until it is done."""

    title: str
    do: Callable[[], StepResult]


def python(title: str, root: Path, *words: str) -> Step:
    """A step that runs `python …` in the checkout, and goes well when that ends with 0."""

    def do() -> StepResult:
        command = [sys.executable, *words]
        try:
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=MAX_PROGRAM, check=False)
        except subprocess.TimeoutExpired:
            return StepResult(succeeded=False, output=f"took longer than {MAX_PROGRAM:.0f} s")
        said = (done.stdout + done.stderr).strip()[-_MAX_OUTPUT:]
        return StepResult(done.returncode == 0, said or f"ended with {done.returncode}")

    return Step(title, do)


def modules(folder: Path) -> list[Path]:
    """The Python files in a folder and below, sorted."""
    return sorted(folder.rglob("*.py"))


def compiled(paths: Sequence[Path]) -> StepResult:
    """Compile each file, in memory."""
    size = 0
    for path in paths:
        try:
            code = compile(path.read_bytes(), path.name, "exec")
        except SyntaxError as error:
            return StepResult(succeeded=False, output=f"SyntaxError: {error.msg} ({path.name}, line {error.lineno})")
        size += _size(code)
    return StepResult(succeeded=True, output=f"{len(paths)} modules compile to {size:,} bytes of bytecode")


def tokenised(path: Path) -> StepResult:
    """Count the tokens of a file by kind."""
    kinds = Counter(
        tokenize.tok_name[token.type] for token in tokenize.tokenize(io.BytesIO(path.read_bytes()).readline)
    )
    return StepResult(
        succeeded=True, output=", ".join(f"{count} {kind.lower()}" for kind, count in kinds.most_common(4))
    )


def hashed(path: Path) -> StepResult:
    """The SHA-256 of a file."""
    return StepResult(succeeded=True, output=f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()} of {path.name}")


def counted(paths: Sequence[Path]) -> StepResult:
    """Count functions and lines, and find the longest function."""
    lines, found = 0, []
    for path in paths:
        source = path.read_text()
        lines += source.count("\n")
        found += [
            ((node.end_lineno or node.lineno) - node.lineno + 1, f"{path.name}:{node.name}")
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
    length, name = max(found, default=(0, "none"))
    return StepResult(
        succeeded=True, output=f"{len(found)} functions in {lines:,} lines; the longest is {name}, {length} lines"
    )


def documented(paths: Sequence[Path]) -> StepResult:
    """See that every module opens with a docstring, and every public class and function has one."""
    missing, seen = [], 0
    for path in paths:
        tree = ast.parse(path.read_text())
        for node in (tree, *_public(tree)):
            seen += 1
            if ast.get_docstring(node) is None:
                missing.append(f"{path.name}:{getattr(node, 'name', 'module')}")
    if missing:
        return StepResult(succeeded=False, output=f"no docstring: {', '.join(missing[:10])}")
    return StepResult(succeeded=True, output=f"{seen} docstrings in {len(paths)} modules")


def imported(paths: Sequence[Path], allowed: frozenset[str]) -> StepResult:
    """See that modules import only from the packages of ours that are allowed to them."""
    seen: Counter[str] = Counter()
    for path in paths:
        for name in _imports(ast.parse(path.read_text())):
            if name not in allowed:
                return StepResult(succeeded=False, output=f"{path.name} imports from {name}, which lies above")
            seen[name] += 1
    return StepResult(
        succeeded=True, output=", ".join(f"{name} {count}" for name, count in seen.most_common()) or "imports none"
    )


def migration(path: Path) -> StepResult:
    """See that a migration has an upgrade and names what it builds on."""
    tree = ast.parse(path.read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assigned = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    missing = ({"upgrade"} - functions) | ({"revision", "down_revision"} - assigned)
    if missing:
        return StepResult(succeeded=False, output=f"{path.name} has no {', '.join(sorted(missing))}")
    tables = path.read_text().upper().count("CREATE TABLE") + path.read_text().count("create_table(")
    return StepResult(succeeded=True, output=f"{path.name} is whole and creates {tables} tables and partitions")


def unresolved(document: Any, part: Any) -> list[str]:
    """The `$ref`s in a part of a document that lead nowhere in it."""
    return [ref for ref in _refs(part) if not _leads_somewhere(document, ref)]


def _refs(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(ref := node.get("$ref"), str):
            yield ref
        for value in node.values():
            yield from _refs(value)
    elif isinstance(node, list):
        for value in node:
            yield from _refs(value)


def _leads_somewhere(document: Any, ref: str) -> bool:
    at = document
    for key in ref.removeprefix("#/").split("/"):
        if not isinstance(at, dict) or key not in at:
            return False
        at = at[key]
    return True


def _size(code: Any) -> int:
    return len(code.co_code) + sum(_size(const) for const in code.co_consts if hasattr(const, "co_code"))


def _public(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def _imports(tree: ast.Module) -> Iterator[str]:
    """The packages of taskherd that a module imports from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("taskherd"):
            _, _, inner = (node.module or "").partition(".")
            yield from [inner.split(".")[0]] if inner else [a.name for a in node.names if not a.name.startswith("__")]
