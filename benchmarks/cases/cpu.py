"""The worker's CPU time by package and by function."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from benchmarks.cases.throughput import IN_ARRAYS
from benchmarks.harness.contenders import WORKER, measure_contender
from benchmarks.harness.workload import Workload

if TYPE_CHECKING:
    from benchmarks.harness.contenders import Measured
    from benchmarks.harness.run import Run
    from benchmarks.harness.services import BenchmarkServices

Stacks: TypeAlias = "list[tuple[list[str], int]]"
"""Sampled stacks, innermost function first, each with its number of samples."""

_PACKAGES = (
    ("aiormq/pamqp/aio_pika", r"/(aiormq|pamqp|aio_pika)/"),
    ("asyncpg", r"/asyncpg/"),
    ("sqlalchemy", r"/(sqlalchemy|greenlet)/"),
    ("pydantic", r"/pydantic/"),
    ("taskherd.broker", r"/taskherd/broker/"),
    ("taskherd.domain", r"/taskherd/domain/"),
    ("taskherd.worker", r"/taskherd/worker/"),
    ("taskherd.store", r"/taskherd/store/"),
    ("taskherd.messages", r"/taskherd/messages/"),
    ("taskherd, other modules", r"/taskherd/"),
    ("prometheus_client", r"/prometheus_client/"),
    ("asyncio/uvloop", r"/(asyncio|uvloop)/"),
    ("meter (of the benchmark)", r"/benchmarks/|threading"),
    ("constructors of dataclasses", r"<string>"),
    ("asyncpg's check of each array element (abc)", r"<frozen abc>"),
    ("standard library, other modules", r""),
)
_MAX_LINES = 45


async def profile(run: Run) -> str:
    """Return the shares of packages and functions, with single reports or, with ``--arrays``, with arrays."""
    work = Workload(10_000, run.options.reports, arrays=run.options.arrays)
    measured, stacks = await _sample(run.services, work)
    cpu = measured.cpu
    own: Counter[str] = Counter()
    cumulative: Counter[str] = Counter()
    for stack, count in stacks:
        own[_short(stack[0])] += count
        for name in {_short(entry) for entry in stack if "/taskherd/" in entry or "/aiormq/" in entry}:
            cumulative[name] += count
    total = sum(count for _, count in stacks)
    lines = [f"{measured.rate:,.0f} reports/s while sampled; {total:,} samples, {cpu:.0f} µs of CPU per report", ""]
    lines += [
        _shares("package, own code", _by_package(stacks), total, cpu),
        _shares("function, own code", own, total, cpu),
        _shares("function of taskherd or aiormq, including its callees", cumulative, total, cpu),
    ]
    return "\n".join(lines)


async def measure(run: Run) -> str:
    """Return the shares of packages, with single reports and with arrays."""
    reports = run.options.reports
    parts = []
    for work in (Workload(10_000, reports), Workload(10_000, IN_ARRAYS * reports, arrays=True)):
        measured, stacks = await _sample(run.services, work)
        run.log(f"{measured.cpu:.0f} µs of CPU per report: {work.description}")
        shape = "In arrays of 100" if work.arrays else "One report per message"
        total = sum(count for _, count in stacks)
        parts += [
            f"{shape}: {measured.cpu:.0f} µs per report, {total:,} samples.\n",
            _shares("package, own code", _by_package(stacks), total, measured.cpu),
        ]
    return "\n".join(parts).rstrip()


async def _sample(services: BenchmarkServices, work: Workload) -> tuple[Measured, Stacks]:
    with tempfile.TemporaryDirectory(prefix="taskherd-bench-") as folder:
        path = Path(folder) / "samples.json"
        measured = await measure_contender(services, WORKER, work, BENCH_SAMPLES=str(path))
        return measured, [(stack, count) for stack, count in json.loads(path.read_text()) if not _is_startup(stack)]


def _by_package(stacks: Stacks) -> Counter[str]:
    packages: Counter[str] = Counter()
    for stack, count in stacks:
        packages[_package(stack[0])] += count
    return packages


def _shares(title: str, counter: Counter[str], total: int, cpu: float) -> str:
    lines = [f"| {title} | share | µs per report |", "|---|---:|---:|"]
    for name, count in counter.most_common(_MAX_LINES):
        share = count / total
        lines.append(f"| `{name}` | {share:.1%} | {share * cpu:.1f} |")
    return "\n".join([*lines, ""])


def _is_startup(stack: list[str]) -> bool:
    """Return whether a sample was taken while the worker started."""
    return any("/alembic/" in entry or "importlib" in entry or "migrate.py" in entry for entry in stack)


def _package(entry: str) -> str:
    return next(name for name, pattern in _PACKAGES if re.search(pattern, entry))


def _short(entry: str) -> str:
    path, _, name = entry.rpartition(":")
    return f"{'/'.join(path.split('/')[-2:])}:{name}"
