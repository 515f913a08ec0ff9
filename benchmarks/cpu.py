"""Which share of the worker's CPU goes where: by package, and by function of ours."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.contenders import HERD, measure
from benchmarks.stage import Stage
from benchmarks.workload import Workload

_PACKAGES = (
    ("aiormq/pamqp/aio_pika", r"/(aiormq|pamqp|aio_pika)/"),
    ("asyncpg", r"/asyncpg/"),
    ("sqlalchemy", r"/(sqlalchemy|greenlet)/"),
    ("pydantic", r"/pydantic/"),
    ("taskherd.broker", r"/taskherd/broker/"),
    ("taskherd.core", r"/taskherd/core/"),
    ("taskherd.flow", r"/taskherd/flow/"),
    ("taskherd.store", r"/taskherd/store/"),
    ("taskherd.wire", r"/taskherd/wire/"),
    ("taskherd, the rest", r"/taskherd/"),
    ("prometheus_client", r"/prometheus_client/"),
    ("asyncio/uvloop", r"/(asyncio|uvloop)/"),
    ("meter (the benchmark's own)", r"/benchmarks/|threading"),
    ("standard library, the rest", r""),
)
_TOP = 45


async def profile(stage: Stage, work: Workload) -> str:
    """Run the worker through the work with the sampler on, and say where its CPU went."""
    with tempfile.TemporaryDirectory(prefix="taskherd-bench-") as folder:
        path = Path(folder) / "samples.json"
        measured = await measure(stage, HERD, work, BENCH_SAMPLES=str(path))
        stacks = [(stack, count) for stack, count in json.loads(path.read_text()) if not _outside(stack)]
    total = sum(count for _, count in stacks)
    each = measured.cpu
    lines = [f"{measured.rate:,.0f} reports/s while sampled; {total:,} samples, {each:.0f} µs of CPU a report", ""]
    packages: Counter[str] = Counter()
    itself: Counter[str] = Counter()
    under: Counter[str] = Counter()
    for stack, count in stacks:
        packages[_package(stack[0])] += count
        itself[_short(stack[0])] += count
        for name in {_short(entry) for entry in stack if "/taskherd/" in entry or "/aiormq/" in entry}:
            under[name] += count
    for title, counter, most in (
        ("package, in its own code", packages, len(_PACKAGES)),
        ("function, in its own code", itself, _TOP),
        ("function of taskherd or aiormq, with all that it calls", under, _TOP),
    ):
        lines += [f"| {title} | share | µs a report |", "|---|---:|---:|"]
        for name, count in counter.most_common(most):
            share = count / total
            lines.append(f"| `{name}` | {share:.1%} | {share * each:.1f} |")
        lines.append("")
    return "\n".join(lines)


def _outside(stack: list[str]) -> bool:
    """Whether a sample is of the start and not of the work."""
    return any("/alembic/" in entry or "importlib" in entry or "migrate.py" in entry for entry in stack)


def _package(entry: str) -> str:
    return next(name for name, pattern in _PACKAGES if re.search(pattern, entry))


def _short(entry: str) -> str:
    path, _, name = entry.rpartition(":")
    return f"{'/'.join(path.split('/')[-2:])}:{name}"
