"""What the pages of a task and of the fleet cost: the bytes that a viewer gets, and the time of their statements."""

from __future__ import annotations

import statistics
from time import perf_counter
from typing import TYPE_CHECKING, Final
from uuid import UUID

import orjson

from benchmarks.harness.services import connected, with_database
from benchmarks.harness.workload import task_id
from taskherd.api.http.query_parameters import MAX_POSITION
from taskherd.api.tasks import log_follow, queries
from taskherd.store import fleet_queries, task_queries
from taskherd.store.read_pool import ReadPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from benchmarks.harness.run import Run
    from taskherd.store.read_pool import Row

TASKS: Final = 100_000
CONNECTED: Final = 20_000
ENTRIES: Final = 10_000
FOLLOWED: Final = 1_000
NAME: Final = "bench_pages"
ROUNDS: Final = 50
FILL: Final = """
INSERT INTO task_logs
    (task_id, log_id, build_number, entry_id, seq, type, content, time, logged_at, first_seq, revision)
SELECT $1, n, 1, n, n, 'output', repeat('An agent says this much in one entry. ', 16), now(), now(), n, n
FROM generate_series(0, $2::bigint - 1) AS n
"""
HEAD: Final = "INSERT INTO task_log_heads (task_id, next_log_id, revision) VALUES ($1, 0, $2)"
CONNECT: Final = """
INSERT INTO leases (task_id, build_number, seq, last_heartbeat_at) SELECT id, 1, 1, now() FROM tasks LIMIT $1
ON CONFLICT DO NOTHING
"""
CLAIM: Final = """
INSERT INTO build_claims SELECT task_id, build_number, 'runner-' || (random() * 50)::int, now() FROM leases
ON CONFLICT DO NOTHING
"""


async def measure(run: Run) -> str:
    """Measure on 100,000 tasks, of which 20,000 have a connected agent and one a log of 10,000 entries."""
    services = run.services
    await services.copy(await services.template(TASKS), NAME)
    url = with_database(services.database_url, NAME)
    chatty = task_id(0)
    async with connected(url) as admin:
        await admin.execute(FILL, chatty, ENTRIES)
        await admin.execute(HEAD, chatty, ENTRIES)
        await admin.execute(CONNECT, CONNECTED)
        await admin.execute(CLAIM)
        await admin.execute("ANALYZE")
        owner = await admin.fetchval("SELECT owner_id FROM tasks WHERE id = $1", chatty)
    pool = ReadPool(url, size=2, application_name="benchmark")
    try:
        lines = [line async for line in _lines(pool, owner, chatty)]
    finally:
        await pool.close()
        await services.drop(NAME)
    return "\n".join(["| what | bytes | ms |", "|---|---|---|", *lines])


async def _lines(pool: ReadPool, owner: UUID, chatty: UUID) -> AsyncIterator[str]:
    limits = {"content_bytes": log_follow.MAX_BYTES}

    async def newest(entries: int) -> Sequence[Row]:
        return await task_queries.logs(pool, owner, chatty, after=-1, before=MAX_POSITION, entries=entries, **limits)

    async def changed(count: int) -> Sequence[Row]:
        after = ENTRIES - 1 - count
        return await task_queries.changed_logs(pool, owner, chatty, after=after, entries=1_000, **limits)

    followed = [task_id(index) for index in range(FOLLOWED)]
    for name, call in (
        (
            f"the whole log of {ENTRIES:,} entries, as a page without a stream reads it again and again",
            lambda: newest(ENTRIES),
        ),
        ("its newest 100 entries, with which a stream begins", lambda: newest(100)),
        ("one entry that was added or replaced, in a stream", lambda: changed(1)),
    ):
        rows, milliseconds = await _time(call)
        size = len(orjson.dumps([queries.log_entry(row) for row in rows]))
        yield f"| {name} | {size:,} | {milliseconds:.1f} |"
    for name, call in (
        (
            f"the revisions of {FOLLOWED:,} followed logs, once for all streams of a process",
            lambda: task_queries.log_revisions(pool, followed),
        ),
        (
            f"agents by runner, {CONNECTED:,} connected, for an operator",
            lambda: fleet_queries.agents(pool, owner, all_=True),
        ),
        (
            "the same for a member, whose access to each is checked",
            lambda: fleet_queries.agents(pool, owner, all_=False),
        ),
    ):
        _, milliseconds = await _time(call)
        yield f"| {name} | | {milliseconds:.1f} |"


async def _time(call: Callable[[], Awaitable[Sequence[Row]]]) -> tuple[Sequence[Row], float]:
    """Return the rows, and the median time in milliseconds."""
    times = []
    rows: Sequence[Row] = ()
    for _ in range(ROUNDS):
        begun = perf_counter()
        rows = await call()
        times.append(1_000 * (perf_counter() - begun))
    return rows, statistics.median(times)
