"""When a standby may serve a caller, in pure arithmetic."""

from __future__ import annotations

from uuid import UUID

from taskherd.api.read_routing import ReadMarks, ReplicationProgress, Sample

ALICE, BOB, CAROL = (UUID(int=number) for number in range(3))


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


def test_a_newer_mark_outlives_an_older_one() -> None:
    """Setting a mark again keeps the caller from being forgotten first."""
    marks = ReadMarks(limit=2)
    for caller, time in ((ALICE, 1.0), (BOB, 2.0), (ALICE, 3.0), (CAROL, 4.0)):
        marks.set(caller, time)
    assert marks.allow(BOB, 2.0)
    assert not marks.allow(ALICE, 2.9)
