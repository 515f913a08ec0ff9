"""When a standby may serve a caller, without any server."""

from __future__ import annotations

from uuid import UUID

import pytest
from structlog.testing import capture_logs

from taskherd.api.read_routing import ReadMarks, ReadRouting, ReplicationProgress, Sample
from taskherd.errors import Misconfigured, Unavailable
from taskherd.observability.metrics import Metrics
from taskherd.store import replication
from taskherd.store.read_pool import ReadPool
from taskherd.store.replication import UNKNOWN_LSN, DatabaseId, WalPosition, parse_lsn

ALICE, BOB, CAROL = (UUID(int=number) for number in range(3))
AWAY = "postgresql://taskherd@127.0.0.1:1/none"
"""No server listens there."""


def shown(progress: ReplicationProgress) -> float | None:
    """Return the time until which the standby shows all changes."""
    return progress.shown_until


def test_the_standby_shows_what_was_written_before_the_sample_that_it_has_reached() -> None:
    """``shown_until`` is the time of the newest sample whose position is replayed, not of a newer one."""
    progress = ReplicationProgress()
    progress.update(Sample(1.0, 100), 50)
    assert shown(progress) is None
    progress.update(Sample(2.0, 200), 150)
    assert shown(progress) == 1.0
    progress.update(None, 199)
    assert shown(progress) == 1.0
    progress.update(None, 200)
    assert shown(progress) == 2.0


def test_a_restarted_standby_counts_only_from_a_new_sample() -> None:
    """After a failure nothing is known, even if the standby shows less than before."""
    progress = ReplicationProgress()
    progress.update(Sample(1.0, 100), 100)
    progress.update(Sample(2.0, 200), None)
    assert shown(progress) is None
    progress.update(Sample(3.0, 300), 90)
    assert shown(progress) is None
    progress.update(Sample(4.0, 300), 300)
    assert shown(progress) == 4.0


def test_a_standby_that_is_behind_what_it_showed_has_restarted() -> None:
    """Also if no comparison failed meanwhile: nothing is known of what it shows until it reaches a position again."""
    progress = ReplicationProgress()
    progress.update(Sample(1.0, 100), 100)
    progress.update(Sample(2.0, 200), 90)
    assert (progress.shown_until, progress.replayed) == (None, 90)
    progress.update(None, 200)
    assert progress.shown_until == 2.0


def test_a_caller_waits_for_their_own_mark() -> None:
    """A caller is allowed once the standby shows what they saw; others are allowed at once."""
    marks = ReadMarks()
    marks.set(ALICE, 5.0)
    assert not marks.allow(ALICE, 4.9)
    assert marks.allow(BOB, 4.9)
    assert marks.allow(ALICE, 5.0)


def test_a_forgotten_mark_counts_for_all() -> None:
    """Beyond the limit no caller reads an older state than they saw: the oldest mark counts for everybody."""
    marks = ReadMarks(limit=1)
    marks.set(ALICE, 5.0)
    marks.set(BOB, 6.0)
    assert not marks.allow(ALICE, 4.9)
    assert not marks.allow(CAROL, 4.9)
    assert marks.allow(ALICE, 5.0)
    assert not marks.allow(BOB, 5.5)


def test_a_mark_that_the_standby_has_passed_makes_nobody_wait() -> None:
    """It is forgotten at once, so that it is never the oldest one beyond the limit."""
    marks = ReadMarks(limit=1)
    marks.set(ALICE, 5.0)
    assert marks.allow(ALICE, 5.0)
    marks.set(BOB, 6.0)
    assert marks.allow(CAROL, 4.0)


def test_a_newer_mark_outlives_an_older_one() -> None:
    """Setting a mark again keeps the caller from being forgotten first."""
    marks = ReadMarks(limit=2)
    for caller, time in ((ALICE, 1.0), (BOB, 2.0), (ALICE, 3.0), (CAROL, 4.0)):
        marks.set(caller, time)
    assert marks.allow(BOB, 2.0)
    assert not marks.allow(ALICE, 2.9)


class Routing:
    """A routing whose clock tests set, to servers that do not answer: what it chooses needs none."""

    def __init__(self, *, standby: bool = True) -> None:
        self.now = 100.0
        self.metrics = Metrics()
        self.pool = ReadPool(AWAY, size=1, application_name="taskherd-tests")
        self.chosen = ReadRouting(self.pool, self.pool if standby else None, 5.0, self.metrics, lambda: self.now)

    def show(self, time: float) -> None:
        """Have the standby show what was written before a time."""
        self.chosen.progress.update(Sample(time, 1), 1)

    @property
    def lag(self) -> float | None:
        """Return the lag as the metric shows it."""
        return self.metrics.registry.get_sample_value("taskherd_api_standby_lag_seconds")


def test_a_standby_may_lag_up_to_the_bound() -> None:
    """It is read while its lag is not greater than the bound, and not before it is known."""
    routing = Routing()
    assert routing.chosen.lag == float("inf")
    assert not routing.chosen.allows_standby(ALICE)
    routing.show(98.0)
    routing.now = 103.0
    assert routing.chosen.lag == 5.0
    assert routing.chosen.allows_standby(ALICE)
    routing.now = 103.125
    assert not routing.chosen.allows_standby(ALICE)


def test_whoever_wrote_waits_for_the_standby() -> None:
    """A write marks its caller at its time; the standby serves others, and the caller once it shows that time."""
    routing = Routing()
    routing.show(99.0)
    routing.chosen.mark(ALICE)
    assert not routing.chosen.allows_standby(ALICE)
    assert routing.chosen.allows_standby(BOB)
    routing.show(100.0)
    assert routing.chosen.allows_standby(ALICE)


def test_a_request_that_names_an_lsn_waits_for_it() -> None:
    """The standby serves it once it shows that position, and the same caller's other requests before."""
    routing = Routing()
    routing.show(100.0)
    assert routing.chosen.allows_standby(ALICE, 1)
    assert not routing.chosen.allows_standby(ALICE, 2)
    assert routing.chosen.allows_standby(ALICE)
    routing.chosen.progress.update(None, 2)
    assert routing.chosen.allows_standby(ALICE, 2)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("0/0", 0),
        ("16/b374d848", (0x16 << 32) + 0xB374D848),
        (UNKNOWN_LSN, 2**64 - 1),
        ("", None),
        ("1", None),
        ("123456789/0", None),
        ("1/2/3", None),
        ("1/2\n", None),
        ("-1/2", None),
    ],
)
def test_an_lsn_is_read_as_postgresql_prints_it(text: str, position: int | None) -> None:
    """What is not one is no position."""
    assert parse_lsn(text) == position


async def test_a_write_whose_position_is_unknown_is_read_from_the_primary() -> None:
    """If the primary does not name its position, the response names one that no standby shows; without standby none."""
    routing = Routing()
    routing.show(100.0)
    lsn = await routing.chosen.written_lsn()
    assert lsn == UNKNOWN_LSN
    assert not routing.chosen.allows_standby(ALICE, parse_lsn(lsn) or 0)
    assert await Routing(standby=False).chosen.written_lsn() is None


@pytest.mark.parametrize(("written", "named"), [("0/7", "0/7"), (None, UNKNOWN_LSN)])
async def test_a_write_names_the_position_of_the_primary(
    monkeypatch: pytest.MonkeyPatch, written: str | None, named: str
) -> None:
    """Its answer has the position, if the primary has one."""
    routing = Routing()

    async def written_lsn(pool: ReadPool) -> str | None:
        assert pool is routing.pool
        return written

    monkeypatch.setattr(replication, "written_lsn", written_lsn)
    assert await routing.chosen.written_lsn() == named


def test_the_log_says_when_the_standby_begins_and_ceases_to_be_used() -> None:
    """Once each time, with the reason: not for every read or comparison."""
    chosen = Routing().chosen
    with capture_logs() as logged:
        for problem in ("not yet", None, None, "it lags", "it is gone", None):
            chosen._note(problem)
            assert chosen.problem == problem
    assert [(each["event"], each.get("reason")) for each in logged] == [
        ("standby used again", None),
        ("standby not used", "it lags"),
        ("standby used again", None),
    ]


def test_without_a_standby_everything_is_read_from_the_primary() -> None:
    """There is nothing to choose, and nothing to remember about callers."""
    routing = Routing(standby=False)
    routing.chosen.mark(ALICE)
    assert routing.chosen.reader(ALICE) is routing.pool
    assert not vars(vars(routing.chosen)["_marks"])["_marks"]


async def test_a_standby_that_rejected_a_read_is_not_even_compared_for_a_while() -> None:
    """It answers comparisons, so only time tells whether it accepts reads again; after an outage the next one does."""
    routing = Routing()
    rejected = Misconfigured("database_read_url", "a user with privileges")
    routing.show(99.0)
    routing.chosen.suspend(rejected)
    assert not routing.chosen.allows_standby(ALICE)
    routing.now += 10 - 0.125
    await routing.chosen.sample_once(routing.pool)
    assert (routing.chosen.problem, routing.lag) == (str(rejected), float("inf"))
    routing.now += 0.125
    await routing.chosen.sample_once(routing.pool)
    assert "127.0.0.1:1: Connection refused" in (routing.chosen.problem or "")
    routing.chosen.suspend(Unavailable("the standby is gone"))
    assert routing.chosen.problem == "the standby is gone"
    await routing.chosen.sample_once(routing.pool)
    assert "127.0.0.1:1: Connection refused" in (routing.chosen.problem or "")
    await routing.pool.close()


def test_the_oldest_samples_are_forgotten_first() -> None:
    """While the standby stands still, a bounded number of positions is kept, the newest ones."""
    progress = ReplicationProgress()
    for number in range(1_002):
        progress.update(Sample(float(number), number), 0)
    assert shown(progress) == 0.0
    progress.update(None, 2)
    assert shown(progress) == 2.0
    progress.update(None, 1_002)
    assert shown(progress) == 1_001


HERE, ELSEWHERE = DatabaseId(1, 2), DatabaseId(1, 3)


async def test_why_a_standby_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is of another database, another timeline, too far behind, or no standby; it is read again once it may be."""
    routing = Routing()
    answers: list[object] = []

    async def answer(pool: ReadPool) -> object:
        assert pool is routing.pool
        result = answers.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(replication, "written", answer)
    monkeypatch.setattr(replication, "replayed", answer)

    async def problem(written: object, replayed: object, after: float = 0.0) -> str | None:
        answers.extend([written, replayed])
        routing.now += after
        await routing.chosen.sample_once(routing.pool)
        return routing.chosen.problem

    assert await problem(None, WalPosition(HERE, 1, 50)) == "it lags more than 5 s behind the primary"
    assert await problem(WalPosition(HERE, 1, 100), None) == "the server at database_read_url is not a standby"
    assert await problem(WalPosition(HERE, 1, 100), WalPosition(HERE, 1, 100)) is None
    assert routing.lag == 0
    other = await problem(WalPosition(HERE, 1, 100), WalPosition(ELSEWHERE, 1, 100))
    assert other == "database_read_url leads to another database than database_url"
    assert routing.lag == float("inf")
    assert await problem(WalPosition(HERE, 1, 100), WalPosition(HERE, 1, 100)) is None
    assert await problem(Unavailable("away"), WalPosition(HERE, 1, 100), 5.0) is None
    assert routing.lag == 5
    lagging = await problem(Unavailable("away"), WalPosition(HERE, 1, 100), 0.5)
    assert lagging == "it lags more than 5 s behind the primary"
    assert await problem(Unavailable("away"), Unavailable("it is gone")) == "it is gone"
    promoted = await problem(WalPosition(HERE, 2, 90), WalPosition(HERE, 1, 100))
    assert promoted == "it shows timeline 1, and the primary writes timeline 2"
    assert await problem(WalPosition(HERE, 2, 110), WalPosition(HERE, 2, 110)) is None
    with pytest.raises(KeyError):
        await problem(KeyError(), WalPosition(HERE, 2, 110))


async def test_a_comparison_during_which_the_standby_failed_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one begun afterwards does."""
    routing = Routing()

    async def written(_pool: ReadPool) -> WalPosition:
        return WalPosition(HERE, 1, 1)

    async def replayed(_pool: ReadPool) -> WalPosition:
        if not routing.chosen.progress.replayed:
            routing.chosen.suspend(Unavailable("it is gone"))
        return WalPosition(HERE, 1, 1)

    monkeypatch.setattr(replication, "written", written)
    monkeypatch.setattr(replication, "replayed", replayed)
    await routing.chosen.sample_once(routing.pool)
    assert routing.chosen.problem == "it is gone"
    routing.show(99.0)
    await routing.chosen.sample_once(routing.pool)
    assert routing.chosen.problem is None
