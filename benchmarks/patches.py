"""What each patch of a library earns: the same work with it and without it, in turns."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.harness import contenders
from benchmarks.harness.contenders import Contender
from benchmarks.harness.workload import Workload
from benchmarks.peers import patched

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.harness.services import BenchmarkServices

CONSUMING = Contender("taskherd's consuming alone", "benchmarks.peers.patched")
PAIRS = 3
MESSAGES = 40_000


async def measure(stage: BenchmarkServices, _: int, say: Callable[[str], None]) -> str:
    """The table of both patches."""
    with_patch, without = [], []
    for _pair in range(PAIRS):
        without.append(await _cpu(stage, "aiormq"))
        with_patch.append(await _cpu(stage, ""))
        say(f"consuming: {with_patch[-1]:.1f} µs of CPU a message with the patch of aiormq, {without[-1]:.1f} without")
    saved = median(a - b for a, b in zip(without, with_patch, strict=True))
    survived = {names: await _survived(stage, names) for names in ("aiormq", "aiormq pamqp", "pamqp", "")}
    say(f"with one undecodable property among {patched.MESSAGES} messages: {survived}")
    of = f"of {patched.MESSAGES}"
    bad = "with one undecodable property among them"
    return _table(
        [
            (
                "`frame_reader`, `delivery_dispatcher`",
                f"µs of CPU to consume and acknowledge a message, medians of {PAIRS} pairs ({saved:.1f} saved)",
                f"{median(with_patch):.1f}",
                f"{median(without):.1f}",
            ),
            (
                "`pamqp_patches`, with aiormq's own reader",
                f"messages handled, {bad}, where {patched.DELIVERY_LIMIT} deliveries are the limit",
                f"{survived['aiormq']['handled']} {of}",
                f"{survived['aiormq pamqp']['handled']} {of}",
            ),
            (
                "`pamqp_patches`",
                f"dead letters listed, {bad}",
                f"{survived['']['read']} {of}",
                f"{survived['pamqp']['read']} {of}",
            ),
        ]
    )


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    header = ["| patch | figure | with | without |", "|---|---|---:|---:|"]
    return "\n".join([*header, *(f"| {' | '.join(row)} |" for row in rows)])


async def _cpu(stage: BenchmarkServices, unpatched: str) -> float:
    work = Workload(1_000, MESSAGES)
    await stage.clear_queues()
    await stage.wait(work)
    process = contenders.children(stage, CONSUMING.module, BENCH_UNPATCHED=unpatched)
    try:
        return (await contenders.watched(stage, CONSUMING, work, process)).cpu
    finally:
        process.kill()
        await asyncio.to_thread(process.wait, 40)


async def _survived(stage: BenchmarkServices, unpatched: str) -> dict[str, int]:
    await stage.clear_queues()
    process = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", CONSUMING.module, "survive"],
        env={**stage.environment(), "BENCH_UNPATCHED": unpatched},
        stdout=subprocess.PIPE,
        check=True,
        timeout=2 * patched.TIMEOUT,
    )
    outcome: dict[str, int] = json.loads(process.stdout)
    return outcome
