"""An agent that answers questions: each input names a package of a Python project, and it counts what is in there.

`python -m taskherd.dev.agents.answers [FOLDER]`, where FOLDER holds the packages; taskherd's own by default. It speaks
as an agent of the kind `stdio`: idle until something is sent to it, and done when that is `that is all`.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Final

import taskherd

MAX_QUESTIONS: Final = "that is all"


def state(name: str, message: str) -> None:
    """Say what we are doing."""
    print(f'::taskherd state={name} message="{message}"', flush=True)


def answer(folder: Path, question: str) -> str:
    """What is in the package that the question names."""
    package = folder / question
    if not question.isidentifier() or not package.is_dir():
        known = ", ".join(sorted(path.parent.name for path in folder.glob("*/__init__.py")))
        return f"there is no package {question!r}; there are {known}"
    kinds = {ast.FunctionDef: 0, ast.AsyncFunctionDef: 0, ast.ClassDef: 0}
    lines = 0
    for path in package.rglob("*.py"):
        source = path.read_text()
        lines += source.count("\n")
        for node in ast.walk(ast.parse(source)):
            if type(node) in kinds:
                kinds[type(node)] += 1
    functions, coroutines, classes = kinds.values()
    return f"{question}: {lines} lines, {functions} functions, {coroutines} coroutines, {classes} classes"


def main(folder: Path) -> int:
    """Answer until it is enough; the exit status."""
    answered = 0
    state("idle", "Which package?")
    while question := sys.stdin.readline():
        question = question.strip()
        if question == MAX_QUESTIONS:
            break
        state("working", f"Looking at {question}")
        said = answer(folder, question)
        print(said, flush=True)
        answered += 1
        state("idle", said)
    state("complete", f"questions answered: {answered}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else taskherd.__path__[0])))
