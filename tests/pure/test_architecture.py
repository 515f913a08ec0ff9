"""The documentation follows the code: every function and class that a page names as ``file.py:name`` exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "taskherd"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMED = re.compile(r"`((?:[a-z_]+/)*[a-z_0-9]+\.py):([A-Za-z_.]+)`")


@cache
def defined(path: Path) -> frozenset[str]:
    """Return the qualified names of all classes, functions and methods in a file."""
    names: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(f"{prefix}{node.name}")
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{prefix}{node.name}.")

    collect(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return frozenset(names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_functions_exist(page: Path) -> None:
    """Each ``file.py:name`` in a page is a class, function or method of that file."""
    missing = []
    for file, name in NAMED.findall(page.read_text(encoding="utf-8")):
        homes = [home / file for home in (PACKAGE, ROOT) if (home / file).is_file()]
        if not homes or name not in defined(homes[0]):
            missing.append(f"{file}:{name}")
    assert missing == []


def test_the_walks_name_functions() -> None:
    """The walks through the code name files and functions, so that the test above has something to check."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for walk in ("One report", "One command", "One timer", "One HTTP request", "One agent start"):
        section = page.partition(f"\n## {walk}\n")[2].partition("\n## ")[0]
        assert len(NAMED.findall(section)) >= 5, walk
