"""The savings of each patch of a library: the same work with and without it, in turns."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.harness.contenders import Contender, measure_process
from benchmarks.harness.services import start_process
from benchmarks.harness.workload import Workload
from benchmarks.peers import patched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness.run import Run
    from benchmarks.harness.services import BenchmarkServices

CONSUMING = Contender("taskherd's consumer alone", "benchmarks.peers.patched")
PAIRS = 3
MESSAGES = 40_000


async def measure(run: Run) -> str:
    """Return the table of the patches."""
    with_patch, without = [], []
    for _ in range(PAIRS):
        without.append(await _cpu(run.services, "aiormq"))
        with_patch.append(await _cpu(run.services, ""))
        run.log(
            f"consuming: {with_patch[-1]:.1f} µs of CPU per message with the patch of aiormq, {without[-1]:.1f} without"
        )
    writing, library = [], []
    for _ in range(PAIRS):
        library.append((await _run_peer(run.services, "publish", "aiormq"))["cpu"])
        writing.append((await _run_peer(run.services, "publish", ""))["cpu"])
        run.log(f"publishing: {writing[-1]:.1f} µs of CPU per message, {library[-1]:.1f} without the patches of aiormq")
    encoding, encoding_library = [], []
    for _ in range(PAIRS):
        encoding_library.append((await _run_peer(run.services, "encode", "asyncpg"))["cpu"])
        encoding.append((await _run_peer(run.services, "encode", ""))["cpu"])
        run.log(f"encoding: {encoding[-1]:.0f} µs of CPU per statement, {encoding_library[-1]:.0f} without the patch")
    saved = median(a - b for a, b in zip(without, with_patch, strict=True))
    handled = {
        names: await _run_peer(run.services, "count", names) for names in ("aiormq", "aiormq pamqp", "pamqp", "")
    }
    run.log(f"with one undecodable property among {patched.MESSAGES} messages: {handled}")
    of = f"of {patched.MESSAGES}"
    undecodable = "with one undecodable property among them"
    return _table(
        [
            (
                "`frame_reader`, `delivery_dispatcher`",
                f"µs of CPU per message to consume and acknowledge, medians of {PAIRS} pairs ({saved:.1f} saved)",
                f"{median(with_patch):.1f}",
                f"{median(without):.1f}",
            ),
            (
                "`frame_writer`",
                f"µs of CPU per message to publish {patched.GROUP} together with confirms, medians of {PAIRS} pairs",
                f"{median(writing):.1f}",
                f"{median(library):.1f}",
            ),
            (
                "`store/patches`",
                f"µs of CPU per statement with {patched.ARRAYS} arrays of {patched.ELEMENTS}, medians of {PAIRS} pairs",
                f"{median(encoding):,.0f}",
                f"{median(encoding_library):,.0f}",
            ),
            (
                "`pamqp_patches`, with aiormq's own reader",
                f"messages handled, {undecodable}, with a delivery limit of {patched.DELIVERY_LIMIT}",
                f"{handled['aiormq']['handled']} {of}",
                f"{handled['aiormq pamqp']['handled']} {of}",
            ),
            (
                "`pamqp_patches`",
                f"dead letters listed, {undecodable}",
                f"{handled['']['read']} {of}",
                f"{handled['pamqp']['read']} {of}",
            ),
        ]
    )


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    header = ["| patch | measured | with | without |", "|---|---|---:|---:|"]
    return "\n".join([*header, *(f"| {' | '.join(row)} |" for row in rows)])


async def _cpu(services: BenchmarkServices, unpatched: str) -> float:
    work = Workload(1_000, MESSAGES)
    await services.clear_queues()
    await services.fill_queue(work)
    process = start_process(services, CONSUMING.module, BENCH_UNPATCHED=unpatched)
    try:
        return (await measure_process(services, CONSUMING, work, process)).cpu
    finally:
        process.kill()
        await asyncio.to_thread(process.wait, 40)


async def _run_peer(services: BenchmarkServices, what: str, unpatched: str) -> dict[str, float]:
    await services.clear_queues()
    process = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", CONSUMING.module, what],
        env={**services.environment(), "BENCH_UNPATCHED": unpatched, "BENCH_ADMIN_URL": services.admin_url},
        stdout=subprocess.PIPE,
        check=True,
        timeout=2 * patched.TIMEOUT,
    )
    outcome: dict[str, float] = json.loads(process.stdout)
    return outcome
