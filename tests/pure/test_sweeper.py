"""What a sweep checks, how much of it at a time, and from which watermark on; without a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, cast
from uuid import UUID

import pytest

from taskherd import retry
from taskherd.domain.directory import TemplatePool
from taskherd.domain.liveness import Timeouts
from taskherd.domain.updates import TimerCheck
from taskherd.errors import Retry, Unavailable
from taskherd.messages.run_policy import default_policy
from taskherd.observability.metrics import Metrics
from taskherd.store import database_clock, directory, tasks, work_requests, workers
from taskherd.store.database_clock import ClampPosition
from taskherd.store.engine import DataError, LockTimeout
from taskherd.store.workers import WorkerRow
from taskherd.worker import sweeper as sweeper_module
from taskherd.worker.directory_cache import DirectoryCache
from taskherd.worker.indexer import Indexer
from taskherd.worker.lease_scan import LeaseSample, LeaseScan, SilentRange
from taskherd.worker.maintenance import Maintenance
from taskherd.worker.probe import Probe
from taskherd.worker.sweeper import ROW_FRESH_FOR, WORKER_EXPIRY, Sweeper
from taskherd.worker.timer_checks import TimerChecks
from tests.harness.contexts import partial_context
from tests.harness.histories import NOON

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
LOST_AFTER, HOLD, TTL = 2 * MINUTE, 5 * MINUTE, HOUR
FULL, CLAMPED = 100, 5_000
"""How many tasks a batch has, and how many times are clamped in one transaction."""


@asynccontextmanager
async def _no_transaction(_: object) -> AsyncIterator[None]:
    yield


def ids(first: int, count: int) -> list[UUID]:
    """Return so many ids."""
    return [UUID(int=number) for number in range(first, first + count)]


class Leases(LeaseScan):
    """Leases of which the next sweep reads ``sample``."""

    def __init__(self) -> None:
        super().__init__()
        self.sample = LeaseSample(0, 0, ())
        self.reads = 0
        self.continued: list[int] = []

    async def read(self, engine: object, now: datetime, lost_after: timedelta) -> LeaseSample:
        """Return the sample."""
        assert (engine, now, lost_after) == ("engine", NOON, LOST_AFTER)
        self.reads += 1
        return self.sample

    def continue_at(self, position: int) -> None:
        """Note where the next sweep continues."""
        self.continued.append(position)


class RequestCounter:
    """An indexer that only counts how often it is asked for."""

    requests = 0

    def request(self) -> None:
        """Count the request."""
        self.requests += 1

    def hand_over(self) -> None:
        """Do so only if it was not asked for."""
        assert self.requests == 0


@dataclass
class Outside:
    """The database, the clocks and the timer checks around a sweeper, which is the worker ``w2``.

    The monotonic clock shows ``seconds``; each statement about due tasks and times takes ``slow`` of them.
    """

    seconds: float = 1000.0
    slow: float = 0.0
    now: datetime = NOON
    clock: datetime | None = None
    drained_since: datetime | None = None
    jumps: bool = False
    moved_back: bool = False
    rows: list[WorkerRow] = field(default_factory=list)
    due: list[int] = field(default_factory=list)
    positions: list[ClampPosition | None] = field(default_factory=list)
    expired: list[tuple[UUID, UUID]] = field(default_factory=list)
    clamped_from: list[ClampPosition] = field(default_factory=list)
    clamped_workers: list[datetime] = field(default_factory=list)
    seen: list[WorkerRow] = field(default_factory=list)
    checks: list[dict[UUID, TimerCheck]] = field(default_factory=list)
    requested: list[datetime | None] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    resets: int = 0
    on_jumps: int = 0

    def __post_init__(self) -> None:
        self.metrics, self.stopping = Metrics(), asyncio.Event()
        context = partial_context(
            engine="engine", metrics=self.metrics, stopping=self.stopping, now=lambda: self.now,
            on_error=self.told.append, timeouts=Timeouts(LOST_AFTER, HOUR, HOUR, TTL, HOLD, HOUR),
        )  # fmt: skip
        self.leases, self.indexer = Leases(), RequestCounter()
        self.sweeper = Sweeper(
            "w2", context, cast("TimerChecks", self), cast("Probe", self), self.correct,
            indexer=cast("Indexer", self.indexer), maintenance=cast("Maintenance", self),
        )  # fmt: skip
        self.sweeper._leases = self.leases

    def correct(self, clock: datetime) -> bool:
        """Set the worker's clock, and return whether it jumped."""
        self.now = clock
        return self.jumps

    async def run(self, checks: Mapping[UUID, TimerCheck]) -> int:
        """Note the checks."""
        self.checks.append(dict(checks))
        return len(checks)

    def reset(self) -> None:
        """Note that the probe is reset."""
        self.resets += 1

    def request(self, watermark: datetime | None) -> None:
        """Note that maintenance is requested."""
        self.requested.append(watermark)

    def on_jump(self) -> None:
        """Note that maintenance is told of a jump."""
        self.on_jumps += 1

    async def read_clock(self, _: object) -> datetime:
        """Return the time of the database."""
        return self.clock or self.now

    async def is_moved_back(self, _: object, now: datetime) -> bool:
        """Return whether stored times are in the future, beyond what two clocks may differ by."""
        assert now == self.now + 30 * SECOND
        return self.moved_back

    async def clamp_workers(self, _: object, now: datetime) -> None:
        """Note that the times of workers are clamped."""
        self.clamped_workers.append(now)

    async def clamp_chunk(self, _: object, now: datetime, position: ClampPosition, limit: int) -> ClampPosition | None:
        """Clamp the next of ``positions``."""
        assert (now, limit) == (self.now, CLAMPED)
        self.seconds += self.slow
        self.clamped_from.append(position)
        return self.positions.pop(0)

    async def record_seen(self, _: object, row: WorkerRow) -> None:
        """Note the row of this worker."""
        self.seen.append(row)

    async def live(self, _: object, since: datetime) -> list[WorkerRow]:
        """Return the rows of all workers."""
        assert since == self.now - WORKER_EXPIRY
        return self.rows

    async def due_tasks(self, _: object, now: datetime, limit: int) -> list[UUID]:
        """Return so many tasks as the first of ``due`` says."""
        assert (now, limit) == (self.now, FULL)
        self.seconds += self.slow
        return ids(0, self.due.pop(0))

    async def expired_inputs(self, _: object, before: datetime, limit: int) -> list[tuple[UUID, UUID]]:
        """Return the inputs that have waited for too long."""
        assert (before, limit) == (self.now - TTL, FULL)
        return self.expired

    def metric(self, name: str) -> float | None:
        """Return the value of a metric."""
        return self.metrics.registry.get_sample_value(f"taskherd_{name}")


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Outside:
    """Return what is around a sweeper."""
    outside = Outside()

    async def follow_directory(_: object) -> None:
        return

    for module, name, function in (
        (database_clock, "read", outside.read_clock),
        (database_clock, "moved_back", outside.is_moved_back),
        (database_clock, "clamp_workers", outside.clamp_workers),
        (database_clock, "clamp_chunk", outside.clamp_chunk),
        (workers, "record_seen", outside.record_seen),
        (workers, "live", outside.live),
        (tasks, "due", outside.due_tasks),
        (work_requests, "expired_inputs", outside.expired_inputs),
        (sweeper_module, "transaction", _no_transaction),
        (sweeper_module, "monotonic", lambda: outside.seconds),
        (outside.sweeper, "_follow_directory", follow_directory),
    ):
        monkeypatch.setattr(module, name, function)
    return outside


def worker(name: str, *, seen: timedelta = timedelta(0), drained: timedelta | None = None) -> WorkerRow:
    """Return the row of a worker that was seen and is drained for so long at noon."""
    return WorkerRow(name, NOON - HOUR, NOON - seen, None if drained is None else NOON - drained)


async def sweep(outside: Outside, *rows: WorkerRow, due: Sequence[int] = (0,)) -> None:
    """Sweep once with these workers and due tasks."""
    outside.rows, outside.due, outside.indexer.requests = list(rows), list(due), 0
    await outside.sweeper.sweep_once()


def has_swept(outside: Outside) -> bool:
    """Return whether the latest sweep looked at the due tasks, and had the index brought up to date."""
    assert outside.indexer.requests == (not outside.due)
    return not outside.due


async def test_due_tasks_are_checked_until_few_are_left(outside: Outside) -> None:
    """A hundred in a batch; with less than that there are no more."""
    await sweep(outside, worker("w2"), due=[FULL, FULL, FULL - 1, 7])
    assert [len(checks) for checks in outside.checks] == [FULL, FULL, FULL - 1]
    assert {*outside.checks[0].values()} == {TimerCheck(None, silence_counted_at=NOON)}
    assert outside.due == [7]


async def test_due_tasks_are_checked_for_two_seconds(outside: Outside) -> None:
    """The next sweep continues."""
    outside.slow = 1
    await sweep(outside, worker("w2"), due=[FULL] * 9)
    assert len(outside.checks) == 3


async def test_after_a_jump_all_silences_are_measured_again(outside: Outside) -> None:
    """The watermark of before the jump counts no more, and the stored times are clamped, those of workers at once."""
    outside.jumps, outside.positions = True, [None]
    await sweep(outside, worker("w2", drained=HOUR))
    assert (outside.resets, outside.on_jumps, outside.clamped_workers) == (1, 1, [NOON])
    assert (outside.clamped_from, outside.requested) == ([ClampPosition()], [NOON])
    outside.jumps = False
    await sweep(outside, worker("w2", drained=HOUR))
    assert (outside.resets, outside.on_jumps, len(outside.clamped_workers)) == (1, 1, 1)


async def test_a_clock_that_is_set_back_begins_everything_anew(outside: Outside) -> None:
    """What is measured from there on is silence, and a hold of a mass loss begins again."""
    await sweep(outside, worker("w2"))
    outside.sweeper._hold_mass_loss(NOON, MASS)
    outside.jumps, outside.clock, outside.positions = True, NOON - HOUR, [None]
    await sweep(outside, WorkerRow("w2", NOON, NOON - HOUR, NOON - 2 * HOUR))
    assert outside.requested[-1] == NOON - HOUR
    assert (outside.sweeper._mass_held_since, outside.metric("mass_silence_held")) == (None, 0)


async def test_times_are_clamped_for_two_seconds(outside: Outside) -> None:
    """The next sweeps continue where the one before ended, until all are clamped."""
    positions = [ClampPosition(0, UUID(int=number)) for number in range(1, 4)]
    outside.jumps, outside.slow, outside.positions = True, 1, [*positions, None]
    await sweep(outside, worker("w2"))
    assert outside.clamped_from == [ClampPosition(), positions[0]]
    outside.jumps = False
    for _ in range(2):
        await sweep(outside, worker("w2"))
    assert outside.clamped_from == [ClampPosition(), *positions]
    assert (outside.positions, len(outside.clamped_workers), outside.on_jumps) == ([], 2, 1)


@pytest.mark.parametrize(("jumps", "moved_back"), [(False, False), (False, True), (True, False)])
async def test_stored_times_tell_a_worker_that_starts_of_a_jump(
    outside: Outside, *, jumps: bool, moved_back: bool
) -> None:
    """Its own clock had the time of its machine before; later it asks its clock alone."""
    outside.jumps, outside.moved_back, outside.positions = jumps, moved_back, [None] * 2
    await sweep(outside, worker("w2"))
    assert outside.on_jumps == (jumps or moved_back)
    outside.jumps, outside.moved_back = False, True
    await sweep(outside, worker("w2"))
    assert outside.on_jumps == (jumps or moved_back)


async def test_a_worker_registers_with_its_times(outside: Outside) -> None:
    """When it started, by the clock of the database, when it was seen, and since when it is drained."""
    outside.drained_since = NOON - MINUTE
    outside.now = NOON + HOUR
    await sweep(outside, worker("w2"))
    outside.now += SECOND
    await sweep(outside, worker("w2"))
    started = NOON + HOUR
    assert outside.seen == [WorkerRow("w2", started, at, NOON - MINUTE) for at in (started, started + SECOND)]


@pytest.mark.parametrize(
    ("others", "sweeps"),
    [
        ([], True),
        ([worker("w1")], False),
        ([worker("w1", seen=ROW_FRESH_FOR)], False),
        ([worker("w1", seen=ROW_FRESH_FOR + timedelta.resolution)], True),
        ([worker("w3")], True),
        ([worker("w3"), worker("w1")], False),
    ],
)
async def test_the_first_of_the_workers_that_are_there_sweeps(
    outside: Outside, others: list[WorkerRow], *, sweeps: bool
) -> None:
    """One that was not seen for a while may be frozen, and does not count."""
    await sweep(outside, *others, worker("w2"))
    assert has_swept(outside) is sweeps
    assert (len(outside.requested), outside.metric("sweeps_total")) == (int(sweeps), int(sweeps))


async def test_a_worker_of_which_no_row_is_fresh_sweeps(outside: Outside) -> None:
    """As after a long statement."""
    await sweep(outside, worker("w1", seen=MINUTE), worker("w2", seen=MINUTE))
    assert has_swept(outside)


@pytest.mark.parametrize(
    ("rows", "watermark"),
    [
        ([worker("w2", drained=HOUR)], NOON - MINUTE),
        ([worker("w2", drained=SECOND)], NOON - SECOND),
        ([worker("w2", drained=None)], None),
        ([worker("w2", drained=SECOND), worker("w3", drained=2 * SECOND)], NOON - SECOND),
        ([worker("w2", drained=SECOND), worker("w3", seen=ROW_FRESH_FOR + SECOND, drained=SECOND)], None),
        ([worker("w2", drained=SECOND), worker("w3", seen=WORKER_EXPIRY + SECOND)], NOON - SECOND),
    ],
)
async def test_silence_is_measured_since_all_workers_are_drained(
    outside: Outside, rows: list[WorkerRow], watermark: datetime | None
) -> None:
    """And since this one has started, a minute ago; one that may be frozen is not drained."""
    outside.now = NOON - MINUTE
    await sweep(outside, worker("w2"))
    outside.now = NOON
    outside.requested.clear()
    await sweep(outside, *rows)
    assert outside.requested == [watermark]


async def test_silence_is_measured_anew_after_an_interruption(outside: Outside) -> None:
    """Even if the workers say later that they were drained before it."""
    outside.now = NOON - HOUR
    await sweep(outside, worker("w2"))
    outside.now = NOON - MINUTE
    await sweep(outside, worker("w2", drained=None))
    outside.now = NOON
    await sweep(outside, worker("w2", drained=HOUR))
    assert outside.requested[-1] == NOON - MINUTE


def silent(*counts: int, connected: int = 10_000) -> LeaseSample:
    """Return a sample of ranges with so many silent agents each; the position after a range is its number."""
    found = [SilentRange(ids(1000 * number, count), number) for number, count in enumerate(counts, start=1)]
    return LeaseSample(connected, sum(counts), found)


async def check_silent(outside: Outside, sample: LeaseSample, drained: timedelta = HOUR) -> list[int]:
    """Sweep once with this sample, and return how many silent agents each batch had."""
    outside.leases.sample = sample
    outside.leases.continued.clear()
    outside.checks.clear()
    await sweep(outside, worker("w2", drained=drained))
    return [len(checks) for checks in outside.checks if checks]


@pytest.fixture
async def drained(outside: Outside) -> Outside:
    """Return what is around a sweeper that has worked for an hour."""
    outside.now = NOON - HOUR
    await sweep(outside, worker("w2"))
    outside.now = NOON
    return outside


@pytest.mark.parametrize(
    ("counts", "parts", "continued"),
    [
        ((3,), [3], [1]),
        ((0, 0), [], [2]),
        ((60, 39, 1), [FULL], [3]),
        ((60, 40, 1), [FULL, 1], [2, 3]),
        ((60, 41, 5), [FULL, 1, 5], [2, 3]),
        ((250,), [FULL, FULL, 50], [1]),
    ],
)
async def test_silent_agents_are_checked_range_by_range(
    drained: Outside, counts: Sequence[int], parts: list[int], continued: list[int]
) -> None:
    """Up to a hundred together; the next sweep continues after the last range of which all were checked."""
    assert await check_silent(drained, silent(*counts)) == parts
    assert drained.leases.continued == continued
    watermark = NOON - HOUR
    checked = [checks for checks in drained.checks if checks]
    expected = TimerCheck(watermark, silence_counted_at=NOON)
    assert {check for checks in checked for check in checks.values()} <= {expected}
    assert [task_id for checks in checked for task_id in checks] == [
        task_id for each in drained.leases.sample.ranges for task_id in each.silent
    ]


async def test_silent_agents_are_checked_for_two_seconds(drained: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next sweep continues after the last range that was checked."""

    async def run(checks: Mapping[UUID, TimerCheck]) -> int:
        drained.seconds += bool(checks)
        return len(checks)

    monkeypatch.setattr(drained, "run", run)
    await check_silent(drained, silent(*[FULL] * 5))
    assert drained.leases.continued == [1, 2, 3]


@pytest.mark.parametrize(("since", "reads"), [(LOST_AFTER, 0), (LOST_AFTER + timedelta.resolution, 1)])
async def test_leases_are_read_once_an_agent_can_be_lost(drained: Outside, since: timedelta, reads: int) -> None:
    """Not before the watermark is as long ago as an agent may be silent."""
    await check_silent(drained, silent(3), since)
    assert drained.leases.reads == reads


MASS = silent(60, connected=100)
PART_OF_IT = silent(54, connected=100)


async def test_a_mass_loss_is_held_and_then_believed(drained: Outside) -> None:
    """For the hold, from the sweep that noticed it on; then the rest of it is believed at once, until it is over."""
    assert await check_silent(drained, MASS) == []
    assert (drained.metric("sweeps_held_total"), drained.metric("mass_silence_held")) == (1, 1)
    assert drained.leases.continued == []
    held = drained.sweeper._mass_held_since
    assert held == NOON
    drained.sweeper._mass_held_since = NOON - HOLD + timedelta.resolution
    assert await check_silent(drained, MASS) == []
    assert drained.checks[-1] == {}
    assert drained.metric("sweeps_held_total") == 2
    drained.sweeper._mass_held_since = NOON - HOLD
    for _ in range(2):
        assert await check_silent(drained, MASS) == [60]
        assert (drained.metric("sweeps_held_total"), drained.metric("mass_silence_held")) == (2, 0)
    assert await check_silent(drained, PART_OF_IT) == [54]
    assert await check_silent(drained, MASS) == []
    assert drained.sweeper._mass_held_since == NOON


async def test_a_hold_lasts_for_drained_time_only(drained: Outside) -> None:
    """The time before the watermark does not count."""
    assert await check_silent(drained, MASS) == []
    drained.sweeper._mass_held_since = NOON - HOUR
    assert await check_silent(drained, MASS, HOLD - SECOND) == []
    assert await check_silent(drained, MASS, HOLD) == [60]


async def test_what_is_due_during_a_hold_is_told_of_it(drained: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no agent is lost by the timer of its build; nor after the worker no longer sweeps."""
    assert await check_silent(drained, MASS) == []
    checks: list[TimerCheck] = []

    async def run(due: Mapping[UUID, TimerCheck]) -> int:
        checks.extend(due.values())
        return len(due)

    monkeypatch.setattr(drained, "run", run)
    await sweep(drained, worker("w2", drained=HOUR), due=[1])
    assert checks == [TimerCheck(NOON - HOUR, mass_held=True, silence_counted_at=NOON)]
    await sweep(drained, worker("w1"), worker("w2"))
    assert (drained.sweeper._mass_held_since, drained.metric("mass_silence_held")) == (None, 0)


async def test_inputs_that_waited_for_too_long_are_checked_by_task(drained: Outside) -> None:
    """With all inputs of a task in one check."""
    one, other = ids(1, 2)
    drained.expired = [(one, UUID(int=11)), (other, UUID(int=12)), (one, UUID(int=13))]
    drained.checks.clear()
    await sweep(drained, worker("w2", drained=TTL), due=[0])
    assert drained.checks == [{}]
    drained.sweeper._earliest_watermark = NOON - 2 * TTL
    watermark = NOON - TTL - timedelta.resolution
    await sweep(drained, worker("w2", drained=TTL + timedelta.resolution), due=[0])
    assert drained.checks[1] == {
        one: TimerCheck(watermark, silence_counted_at=NOON, expired_inputs=(UUID(int=11), UUID(int=13))),
        other: TimerCheck(watermark, silence_counted_at=NOON, expired_inputs=(UUID(int=12),)),
    }


async def test_a_check_that_fails_stops_neither_index_nor_maintenance(
    drained: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are requested as after any other sweep; not by a worker that does not sweep."""

    async def run(_: Mapping[UUID, TimerCheck]) -> int:
        raise LockTimeout("a lock is not available")

    monkeypatch.setattr(drained, "run", run)
    drained.requested.clear()
    with pytest.raises(LockTimeout):
        await sweep(drained, worker("w2", drained=MINUTE))
    assert (drained.requested, drained.indexer.requests) == ([NOON - MINUTE], 1)
    await sweep(drained, worker("w1"), worker("w2"))
    assert (len(drained.requested), drained.indexer.requests) == (1, 0)


async def test_a_sweep_that_fails_is_told_and_repeated(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is measured anew from then on, and a metric says that there was no database."""
    shown: list[tuple[float | None, datetime]] = []
    errors = [None, Unavailable("no database"), Retry("a conflict"), None, DataError("no value"), None]

    async def sweep_once() -> None:
        shown.append((outside.metric("database_up"), outside.sweeper._earliest_watermark))
        outside.now += SECOND
        error = errors.pop(0)
        if not errors:
            outside.stopping.set()
        if error is not None:
            raise error

    monkeypatch.setattr(outside.sweeper, "sweep_once", sweep_once)
    await asyncio.wait_for(outside.sweeper.run(0), 20)
    assert outside.told == ["no database", "a conflict", "no value"]
    assert shown == [
        (0, NOON), (1, NOON), (0, NOON + 2 * SECOND), (0, NOON + 3 * SECOND), (1, NOON + 3 * SECOND),
        (0, NOON + 5 * SECOND),
    ]  # fmt: skip
    assert outside.metric("database_up") == 1


async def test_sweeps_follow_each_other_after_an_interval(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that stops waits for no further one."""
    swept = 0

    async def sweep_once() -> None:
        nonlocal swept
        swept += 1

    monkeypatch.setattr(outside.sweeper, "sweep_once", sweep_once)
    running = asyncio.create_task(outside.sweeper.run(600))
    for _ in range(10):
        await asyncio.sleep(0)
    assert (swept, running.done()) == (1, False)
    outside.stopping.set()
    await asyncio.wait_for(running, 20)
    await asyncio.wait_for(outside.sweeper.run(600), 20)
    assert swept == 1


@pytest.mark.parametrize(("every", "registrations"), [(30, 15), (3, 2), (2, 1), (0.5, 1)])
async def test_a_row_is_renewed_while_sweeps_are_rare(
    outside: Outside, monkeypatch: pytest.MonkeyPatch, every: float, registrations: int
) -> None:
    """Every two seconds, so that another worker finds it fresh whenever that one sweeps; checks are as rare as set."""
    swept: list[float] = []
    registered: list[float] = []
    outside.rows = [worker("w2", drained=HOUR)]

    async def note_sweep(*_: object) -> None:
        swept.append(outside.seconds)
        if len(swept) == 3:
            outside.stopping.set()

    async def record_seen(*_: object) -> None:
        registered.append(outside.seconds)

    async def wait(_: asyncio.Event, seconds: float) -> None:
        outside.seconds += seconds

    monkeypatch.setattr(outside.sweeper, "_check_all", note_sweep)
    monkeypatch.setattr(workers, "record_seen", record_seen)
    monkeypatch.setattr(retry, "wait", wait)
    await asyncio.wait_for(outside.sweeper.run(every), 20)
    assert swept == [1000, 1000 + every, 1000 + 2 * every]
    assert len(registered) == 2 * registrations + 1
    assert max(after - before for before, after in pairwise(registered)) <= 2 < ROW_FRESH_FOR.total_seconds()
    assert len(outside.requested) == outside.metric("sweeps_total") == 3


async def test_an_interruption_between_two_sweeps_counts(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is measured anew from it, also if all workers were drained again when the next sweep began."""
    outside.now = NOON - HOUR
    rows = [worker("w2", drained=HOUR), worker("w2", drained=None), worker("w2", drained=HOUR)]

    async def live(*_: object) -> list[WorkerRow]:
        return [rows.pop(0)]

    async def wait(_: asyncio.Event, seconds: float) -> None:
        outside.seconds += seconds
        outside.now += MINUTE
        if not rows:
            outside.stopping.set()

    outside.due = [0, 0]
    monkeypatch.setattr(workers, "live", live)
    monkeypatch.setattr(retry, "wait", wait)
    await asyncio.wait_for(outside.sweeper.run(4), 20)
    assert outside.requested == [NOON - HOUR, NOON - HOUR + MINUTE]


async def test_metrics_and_the_cache_follow_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """When its revision changes: up to 50 templates and pools have series, those that are gone have none any more."""
    old, new = TemplatePool("old", "gpu"), TemplatePool("new", "gpu")
    found, asked = {1: {old}, 2: {old, new}, 3: {new}}, list[int]()
    shown = 0
    metrics = Metrics()
    connection: Any = "connection"
    engine: Any = "engine"
    cache = DirectoryCache(engine, default_policy(60))
    context = partial_context(metrics=metrics, directory_cache=cache, now=lambda: NOON)
    outside: Any = None
    sweeper = Sweeper("w2", context, outside, outside, outside, indexer=outside, maintenance=outside)

    async def revision(given: object) -> int:
        assert given is connection
        return shown

    async def template_pools(given: object, most: int) -> frozenset[TemplatePool]:
        assert given is connection
        asked.append(most)
        return frozenset(found[shown])

    def series(pair: TemplatePool) -> float | None:
        return metrics.registry.get_sample_value("taskherd_agents_stalled", pair._asdict())

    monkeypatch.setattr(directory, "revision", revision)
    monkeypatch.setattr(directory, "template_pools", template_pools)
    seen = []
    for shown in (1, 1, 2, 2, 3):
        await sweeper._follow_directory(connection)
        seen.append((cache.revision, cache.template_pools == found[shown], series(old), series(new)))
    assert seen == [(1, True, 0, None), (1, True, 0, None), (2, True, 0, 0), (2, True, 0, 0), (3, True, None, 0)]
    assert asked == [50] * 3


async def test_a_worker_that_leaves_deletes_its_row(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own."""
    deleted: list[str] = []

    async def delete(_: object, worker_id: str) -> None:
        deleted.append(worker_id)

    monkeypatch.setattr(workers, "delete", delete)
    await outside.sweeper.deregister()
    assert deleted == ["w2"]
