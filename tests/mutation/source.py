"""Mutations of a source file: what is replaced where, and the text of a node of its syntax tree."""

from __future__ import annotations

import ast
import difflib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Mutation:
    """One replacement in one file of ``src/taskherd``; ``start`` and ``end`` count bytes."""

    path: str
    line: int
    start: int
    end: int
    replacement: str
    operator: str

    @property
    def package(self) -> str:
        """The package of taskherd that the file belongs to."""
        return self.path.split("/")[0]

    def apply(self, source: str) -> str:
        """Return the source with the replacement made."""
        encoded = source.encode()
        return (encoded[: self.start] + self.replacement.encode() + encoded[self.end :]).decode()

    def changed_lines(self, source: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the lines that change, as they were and as they are, without indentation."""
        lines = difflib.ndiff(source.splitlines(), self.apply(source).splitlines())
        changed = [line for line in lines if line[0] in "-+"]
        before, after = (tuple(line[2:].strip() for line in changed if line[0] == sign) for sign in "-+")
        return before, after


class Source:
    """A parsed file whose nodes know their place in the text."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self.tree = ast.parse(text)
        self._encoded = text.encode()
        self._line_starts = [0]
        for line in self._encoded.splitlines(keepends=True):
            self._line_starts.append(self._line_starts[-1] + len(line))

    def start(self, node: ast.expr | ast.stmt | ast.excepthandler) -> int:
        """Return where the node starts, in bytes."""
        return self._line_starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr | ast.stmt | ast.excepthandler) -> int:
        """Return where the node ends, in bytes."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._line_starts[node.end_lineno - 1] + node.end_col_offset

    def between(self, start: int, end: int) -> str:
        """Return the text between two places."""
        return self._encoded[start:end].decode()

    def of(self, node: ast.expr | ast.stmt | ast.excepthandler) -> str:
        """Return the text of a node."""
        return self.between(self.start(node), self.end(node))

    def line(self, place: int) -> int:
        """Return the number of the line at a place."""
        return self._encoded.count(b"\n", 0, place) + 1

    def mutation(self, operator: str, start: int, end: int, replacement: str) -> Mutation:
        """Return a mutation of this file."""
        return Mutation(self.path, self.line(start), start, end, replacement, operator)
