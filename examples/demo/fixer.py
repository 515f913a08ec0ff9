"""An agent that fixes a bug: where the tests of a git repository fail, it tries small changes until they pass.

`python -m examples.demo.fixer` runs in its working directory, and commits what it finds; if there is no
repository it makes a small one, with a bug in it. It speaks as an agent of the kind `stdio`. It does what mutation
testing does, backwards: one change of the source at a time, each tried by the repository's own tests.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SEED: Final = {
    "stock.py": '''"""What is in stock."""


def reorder(stock: int, least: int) -> int:
    """Return how many to order, so that at least `least` are there."""
    if stock > least:
        return 0
    return stock - least


def average(prices: list[float]) -> float:
    """Return the average price, 0 without any."""
    return sum(prices) / len(prices) if prices else 0.0
''',
    "test_stock.py": """import unittest

from stock import average, reorder


class TestStock(unittest.TestCase):
    def test_nothing_is_ordered_while_there_is_enough(self):
        self.assertEqual(reorder(9, 5), 0)

    def test_what_is_missing_is_ordered(self):
        self.assertEqual(reorder(2, 5), 3)

    def test_average(self):
        self.assertEqual(average([1.0, 2.0]), 1.5)


if __name__ == "__main__":
    unittest.main()
""",
}
GIT: Final = ("git", "-c", "user.name=fixer", "-c", "user.email=fixer@example.com", "-c", "init.defaultBranch=main")
TEST: Final = (sys.executable, "-B", "-m", "unittest", "-q")
TEST_TIMEOUT: Final = 30.0
MAX_FIXES: Final = 200
_OPERATORS: Final = (ast.Add(), ast.Sub(), ast.Mult(), ast.FloorDiv())
_COMPARISONS: Final = (ast.Lt(), ast.LtE(), ast.Gt(), ast.GtE(), ast.Eq(), ast.NotEq())


def say(line: str) -> None:
    """Write a line of the conversation."""
    print(line, flush=True)


def state(name: str, message: str) -> None:
    """Say what we are doing."""
    say(f'::taskherd state={name} message="{message}"')


def main(folder: Path) -> int:
    """Fix the repository in `folder`; the exit status."""
    state("working", "looking at the repository")
    if not (folder / ".git").exists():
        _make(folder)
    failed = _test(folder)
    if failed is None:
        state("complete", "all tests passed already")
        return 0
    say(f"the tests fail: {failed}")
    for path in sorted(folder.glob("*.py")):
        if not path.name.startswith("test_") and (found := _fix(folder, path)):
            _git(folder, "commit", "-aqm", f"Fix {path.name}: {found}")
            say(_git(folder, "show", "--stat", "--format=%h %s"))
            state("complete", f"fixed {path.name}: {found}; all tests pass")
            return 0
    state("failed", f"no single change makes the tests pass: {failed}")
    return 1


def _make(folder: Path) -> None:
    for name, content in SEED.items():
        (folder / name).write_text(content)
    (folder / ".gitignore").write_text("__pycache__/\n")
    _git(folder, "init", "-q")
    _git(folder, "add", ".")
    _git(folder, "commit", "-qm", "As it was")
    say("made a repository with a bug in it")


def _fix(folder: Path, path: Path) -> str | None:
    """Try one change after the other; what the one was that makes the tests pass, which stays."""
    source = path.read_text()
    for number, (told, changed) in enumerate(changes(source), 1):
        if number > MAX_FIXES:
            break
        path.write_text(changed)
        failed = _test(folder)
        if failed is None:
            return told
        say(f"{path.name}, try {number}: {told}: {failed}")
    path.write_text(source)
    return None


def changes(source: str) -> Iterator[tuple[str, str]]:
    """Every source that differs in one operator or has two operands swapped, and what was changed in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp):
            swapped = ast.BinOp(node.right, node.op, node.left)
            others = [ast.BinOp(node.left, op, node.right) for op in _OPERATORS if type(op) is not type(node.op)]
            yield from (_replaced(source, node, other) for other in [swapped, *others])
        elif isinstance(node, ast.Compare) and len(node.ops) == 1:
            for op in _COMPARISONS:
                if type(op) is not type(node.ops[0]):
                    yield _replaced(source, node, ast.Compare(node.left, [op], node.comparators))


def _replaced(source: str, node: ast.expr, other: ast.expr) -> tuple[str, str]:
    old = ast.get_source_segment(source, node) or ""
    new = ast.unparse(other)
    lines = source.splitlines(keepends=True)
    line = lines[node.lineno - 1]
    lines[node.lineno - 1] = line[: node.col_offset] + new + line[node.col_offset + len(old) :]
    return f"line {node.lineno}, {old} becomes {new}", "".join(lines)


def _test(folder: Path) -> str | None:
    """Run the tests; None when they pass, else their last word."""
    try:
        done = subprocess.run(
            TEST,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TEST_TIMEOUT,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return "they do not end"
    return None if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2]


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run([*GIT, *words], cwd=folder, capture_output=True, text=True, timeout=TEST_TIMEOUT, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(Path.cwd()))
