"""An agent that fixes a bug: if the tests of a git repository fail, it tries small changes until they pass.

Run it as ``python -m examples.demo.fixer`` in the folder of the repository; without a repository it creates a small
one with a bug. It commits the fix. It is an agent of kind ``stdio``. Its method is mutation testing in reverse: it
tries one change of the source at a time, and runs the tests of the repository on each.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SEED: Final = {
    "stock.py": '''"""Stock levels and prices."""


def reorder(stock: int, minimum: int) -> int:
    """Return how many to order, so that at least `minimum` are in stock."""
    if stock > minimum:
        return 0
    return stock - minimum


def average(prices: list[float]) -> float:
    """Return the average price, or 0 if there are no prices."""
    return sum(prices) / len(prices) if prices else 0.0
''',
    "test_stock.py": """import unittest

from stock import average, reorder


class TestStock(unittest.TestCase):
    def test_nothing_is_ordered_if_the_stock_is_sufficient(self):
        self.assertEqual(reorder(9, 5), 0)

    def test_the_missing_quantity_is_ordered(self):
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
"""Maximum duration of the tests, in seconds."""
MAX_FIXES: Final = 200
"""Maximum number of changes to try in a file."""
_OPERATORS: Final = (ast.Add(), ast.Sub(), ast.Mult(), ast.FloorDiv())
_COMPARISONS: Final = (ast.Lt(), ast.LtE(), ast.Gt(), ast.GtE(), ast.Eq(), ast.NotEq())


def say(line: str) -> None:
    """Print a line, which becomes part of the conversation."""
    print(line, flush=True)


def report(state: str, message: str) -> None:
    """Report the agent's state."""
    say(f'::taskherd state={state} message="{message}"')


def main(folder: Path) -> int:
    """Fix the repository in ``folder`` and return the exit status."""
    report("working", "running the tests of the repository")
    if not (folder / ".git").exists():
        _create_repository(folder)
    failed = _test(folder)
    if failed is None:
        report("complete", "nothing to fix: all tests pass")
        return 0
    say(f"the tests fail: {failed}")
    for path in sorted(folder.glob("*.py")):
        if not path.name.startswith("test_") and (fix := _fix(folder, path)):
            _git(folder, "commit", "-aqm", f"Fix {path.name}: {fix}")
            say(_git(folder, "show", "--stat", "--format=%h %s"))
            report("complete", f"fixed {path.name}: {fix}; all tests pass")
            return 0
    report("failed", f"no single change makes the tests pass: {failed}")
    return 1


def _create_repository(folder: Path) -> None:
    for name, content in SEED.items():
        (folder / name).write_text(content)
    (folder / ".gitignore").write_text("__pycache__/\n")
    _git(folder, "init", "-q")
    _git(folder, "add", ".")
    _git(folder, "commit", "-qm", "Add stock.py")
    say("created a repository with a bug")


def _fix(folder: Path, path: Path) -> str | None:
    """Try one change after another; keep and describe the first that makes the tests pass, or return None."""
    source = path.read_text()
    for number, (description, changed) in enumerate(changes(source), 1):
        if number > MAX_FIXES:
            break
        path.write_text(changed)
        failed = _test(folder)
        if failed is None:
            return description
        say(f"{path.name}, attempt {number}: {description}: {failed}")
    path.write_text(source)
    return None


def changes(source: str) -> Iterator[tuple[str, str]]:
    """Yield a description and the source for each change of one operator or swap of two operands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp):
            swapped = ast.BinOp(node.right, node.op, node.left)
            replaced = [ast.BinOp(node.left, op, node.right) for op in _OPERATORS if type(op) is not type(node.op)]
            yield from (_replace(source, node, other) for other in [swapped, *replaced])
        elif isinstance(node, ast.Compare) and len(node.ops) == 1:
            for op in _COMPARISONS:
                if type(op) is not type(node.ops[0]):
                    yield _replace(source, node, ast.Compare(node.left, [op], node.comparators))


def _replace(source: str, node: ast.expr, other: ast.expr) -> tuple[str, str]:
    old = ast.get_source_segment(source, node) or ""
    new = ast.unparse(other)
    lines = source.splitlines(keepends=True)
    line = lines[node.lineno - 1]
    lines[node.lineno - 1] = line[: node.col_offset] + new + line[node.col_offset + len(old) :]
    return f"line {node.lineno}: {new} instead of {old}", "".join(lines)


def _test(folder: Path) -> str | None:
    """Run the tests; return None if they pass, else their last line of output."""
    try:
        process = subprocess.run(
            TEST,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TEST_TIMEOUT,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"timeout after {TEST_TIMEOUT:.0f} seconds"
    return None if process.returncode == 0 else process.stderr.strip().rpartition("\n")[2]


def _git(folder: Path, *arguments: str) -> str:
    process = subprocess.run(
        [*GIT, *arguments], cwd=folder, capture_output=True, text=True, timeout=TEST_TIMEOUT, check=True
    )
    return process.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(Path.cwd()))
