"""Measure what an idling program costs, and a look at the processes: ``python -m benchmarks.cases.idle COMMAND…``.

The figures justify ``taskherd.runner.activity.BUSY_CPU`` and ``LOOK_INTERVAL``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from taskherd.runner import activity

WARM_UP, SECONDS = 3.0, 10.0
SCANS = 20


def main(command: list[str]) -> None:
    """Run a program with a silent pipe as its stdin, and print its share of a core and the cost of a scan."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as program:
        time.sleep(WARM_UP)
        before = activity.scan()
        time.sleep(SECONDS)
        after = activity.scan()
        pids = after.below(program.pid) | {program.pid}
        ticks = sum(after.ticks.get(pid, 0) - before.ticks.get(pid, 0) for pid in pids)
        share = ticks / os.sysconf("SC_CLK_TCK") / (after.taken_at - before.taken_at)
        started = time.process_time()
        for _ in range(SCANS):
            activity.scan()
        cost = (time.process_time() - started) / SCANS
        program.kill()
    processes = len(after.parents)
    sys.stdout.write(f"{' '.join(command)}: {share:.1%} of a core; busy from {activity.BUSY_CPU:.0%} on\n")
    sys.stdout.write(
        f"scan of {processes} processes: {cost * 1000:.1f} ms of CPU, {cost / processes * 1e6:.0f} µs each\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
