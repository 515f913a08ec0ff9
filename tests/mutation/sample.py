"""The mutations to try: the same for the same seed and code, the same number from each package, from all operators."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.mutation.operators import mutations
from tests.mutation.source import Mutation, Source

PACKAGES = ("domain", "messages", "worker", "store", "broker", "api", "runner")

EXCLUDED = (
    "api/http/openapi.py",  # makes docs/openapi.json
    "domain/diagram.py",  # makes docs/state-diagram.md
    "messages/asyncapi.py",  # makes docs/asyncapi.yaml
    "store/__main__.py",
    "store/migrations/",  # run once per database; compared with the tables
    "store/tables.py",  # compared with the migrations
)
"""Files without behaviour of the running system."""


def all_mutations(root: Path, package: str) -> list[Mutation]:
    """Return every mutation of a package, in the order of files and places."""
    found: list[Mutation] = []
    for path in sorted((root / package).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not name.startswith(EXCLUDED):
            found += mutations(Source(name, path.read_text(encoding="utf-8")))
    return found


def draw(candidates: list[Mutation], seed: int) -> Iterator[Mutation]:
    """Yield the mutations of one package in random order.

    An operator with four times as many mutations as another is drawn twice as often, so that rare ones, such as dropped
    locks, are among the first.
    """
    if not candidates:
        return
    dice = random.Random(f"{seed} {candidates[0].package}")
    by_operator: Mapping[str, list[Mutation]] = defaultdict(list)
    for mutation in candidates:
        by_operator[mutation.operator].append(mutation)
    for group in by_operator.values():
        dice.shuffle(group)
    weights = {operator: len(group) ** 0.5 for operator, group in by_operator.items()}
    while weights:
        (operator,) = dice.choices(list(weights), list(weights.values()))
        yield by_operator[operator].pop()
        if not by_operator[operator]:
            del weights[operator]
