"""Which share of the worker's CPU goes where: by package, and by function of ours."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from benchmarks.cases import rows
from benchmarks.harness import contenders
from benchmarks.harness.contenders import WORKER
from benchmarks.harness.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness.contenders import Measured
    from benchmarks.harness.services import BenchmarkServices

Stacks: TypeAlias = "list[tuple[list[str], int]]"
"""Stacks of a sampler, innermost function first, each with how often it was seen."""

_PACKAGES = (
    ("aiormq/pamqp/aio_pika", r"/(aiormq|pamqp|aio_pika)/"),
    ("asyncpg", r"/asyncpg/"),
    ("sqlalchemy", r"/(sqlalchemy|greenlet)/"),
    ("pydantic", r"/pydantic/"),
    ("taskherd.broker", r"/taskherd/broker/"),
    ("taskherd.domain", r"/taskherd/core/"),
    ("taskherd.worker", r"/taskherd/flow/"),
    ("taskherd.store", r"/taskherd/store/"),
    ("taskherd.messages", r"/taskherd/wire/"),
    ("taskherd, the rest", r"/taskherd/"),
    ("prometheus_client", r"/prometheus_client/"),
    ("asyncio/uvloop", r"/(asyncio|uvloop)/"),
    ("meter (the benchmark's own)", r"/benchmarks/|threading"),
    ("values being made (dataclasses)", r"<string>"),
    ("asyncpg's look at each array element (abc)", r"<frozen abc>"),
    ("standard library, the rest", r""),
)
_TOP = 45


async def profile(stage: BenchmarkServices, work: Workload) -> str:
    """Run the worker through the work with the sampler on, and say where its CPU went, down to functions."""
    measured, stacks = await _sampled(stage, work)
    each = measured.cpu
    itself: Counter[str] = Counter()
    under: Counter[str] = Counter()
    for stack, count in stacks:
        itself[_short(stack[0])] += count
        for name in {_short(entry) for entry in stack if "/taskherd/" in entry or "/aiormq/" in entry}:
            under[name] += count
    total = sum(count for _, count in stacks)
    lines = [f"{measured.rate:,.0f} reports/s while sampled; {total:,} samples, {each:.0f} µs of CPU a report", ""]
    lines += [
        _shares("package, in its own code", _by_package(stacks), total, each),
        _shares("function, in its own code", itself, total, each),
        _shares("function of taskherd or aiormq, with all that it calls", under, total, each),
    ]
    return "\n".join(lines)


async def measure(stage: BenchmarkServices, reports: int, say: Callable[[str], None]) -> str:
    """The table of packages, for a report alone in its message and for one in an array."""
    parts = []
    for work in (Workload(10_000, reports), Workload(10_000, rows.IN_ARRAYS * reports, rows=True)):
        measured, stacks = await _sampled(stage, work)
        say(f"where {measured.cpu:.0f} µs of CPU a report go, of {work.described}")
        how = "In arrays of 100" if work.rows else "One report a message"
        total = sum(count for _, count in stacks)
        parts += [
            f"{how}: {measured.cpu:.0f} µs a report, {total:,} samples.\n",
            _shares("package, in its own code", _by_package(stacks), total, measured.cpu),
        ]
    return "\n".join(parts).rstrip()


async def _sampled(stage: BenchmarkServices, work: Workload) -> tuple[Measured, Stacks]:
    with tempfile.TemporaryDirectory(prefix="taskherd-bench-") as folder:
        path = Path(folder) / "samples.json"
        measured = await contenders.measure(stage, WORKER, work, BENCH_SAMPLES=str(path))
        return measured, [(stack, count) for stack, count in json.loads(path.read_text()) if not _outside(stack)]


def _by_package(stacks: Stacks) -> Counter[str]:
    packages: Counter[str] = Counter()
    for stack, count in stacks:
        packages[_package(stack[0])] += count
    return packages


def _shares(title: str, counter: Counter[str], total: int, each: float) -> str:
    lines = [f"| {title} | share | µs a report |", "|---|---:|---:|"]
    for name, count in counter.most_common(_TOP):
        share = count / total
        lines.append(f"| `{name}` | {share:.1%} | {share * each:.1f} |")
    return "\n".join([*lines, ""])


def _outside(stack: list[str]) -> bool:
    """Whether a sample is of the start and not of the work."""
    return any("/alembic/" in entry or "importlib" in entry or "migrate.py" in entry for entry in stack)


def _package(entry: str) -> str:
    return next(name for name, pattern in _PACKAGES if re.search(pattern, entry))


def _short(entry: str) -> str:
    path, _, name = entry.rpartition(":")
    return f"{'/'.join(path.split('/')[-2:])}:{name}"
