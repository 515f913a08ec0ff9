"""An example agent that answers questions: each input names a package, and the agent counts its lines and functions.

Run it as ``python -m taskherd.dev.agents.answers [FOLDER]``; FOLDER contains the packages, by default taskherd's own.
It is an agent of kind ``stdio``: it reports ``idle`` while it waits for input, and ``complete`` after the input
``that is all``.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Final

import taskherd

LAST_INPUT: Final = "that is all"
"""The input that completes the task."""


def report(state: str, message: str) -> None:
    """Report the agent's state to the runner, with a line of output."""
    print(f'::taskherd state={state} message="{message}"', flush=True)


def answer(folder: Path, question: str) -> str:
    """Return the size of the package that the question names, or the list of packages if there is none."""
    package = folder / question
    if not question.isidentifier() or not package.is_dir():
        names = ", ".join(sorted(path.parent.name for path in folder.glob("*/__init__.py")))
        return f"there is no package {question!r}; choose one of: {names}"
    counts = {ast.FunctionDef: 0, ast.AsyncFunctionDef: 0, ast.ClassDef: 0}
    lines = 0
    for path in package.rglob("*.py"):
        source = path.read_text()
        lines += source.count("\n")
        for node in ast.walk(ast.parse(source)):
            if type(node) in counts:
                counts[type(node)] += 1
    functions, coroutines, classes = counts.values()
    return f"{question}: {lines} lines, {functions} functions, {coroutines} coroutines, {classes} classes"


def main(folder: Path) -> int:
    """Answer questions until the last input or the end of stdin, and return the exit status."""
    answered = 0
    report("idle", "Which package?")
    while question := sys.stdin.readline():
        question = question.strip()
        if question == LAST_INPUT:
            break
        report("working", f"Counting {question}")
        text = answer(folder, question)
        print(text, flush=True)
        answered += 1
        report("idle", text)
    report("complete", f"questions answered: {answered}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else taskherd.__path__[0])))
