"""Leases: a heartbeat bypasses the task only while it cannot change what the task shows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from taskherd.domain import fold, lease
from taskherd.domain.value import replace
from tests.harness.histories import AGENTS, NOON, TASK
from tests.harness.tasks import make_task
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, disconnected, folded, heartbeat, lifecycle, view_of

if TYPE_CHECKING:
    from taskherd.domain.reports import Report
    from tests.pure.domain.mutated_core import Core

FIRST, SECOND, _ = AGENTS
MINUTE = timedelta(minutes=1)

STEADY = {
    "the build names the agent": (build(agent_id=FIRST), heartbeat(seq=1, agent_id=SECOND)),
    "the build names the agent, and the lifecycle another one": (
        build(agent_id=FIRST),
        lifecycle(seq=5, agent_id=FIRST),
        heartbeat(seq=1, agent_id=SECOND),
    ),
    "the heartbeat names no agent": (build(), lifecycle(seq=5, agent_id=FIRST), heartbeat(seq=1)),
    "no lifecycle": (build(), heartbeat(seq=1, agent_id=FIRST)),
    "the lifecycle names no agent": (build(), lifecycle(seq=5), heartbeat(seq=1, agent_id=FIRST)),
    "the lifecycle names the same agent": (
        build(),
        lifecycle(seq=5, agent_id=FIRST),
        heartbeat(seq=1, agent_id=FIRST),
    ),
    "the lifecycle named another agent before": (
        build(),
        lifecycle(seq=5, agent_id=FIRST),
        heartbeat(seq=6, agent_id=SECOND),
    ),
    "the lifecycle named another agent in an earlier build": (
        build(2),
        lifecycle(number=1, seq=5, agent_id=FIRST),
        heartbeat(2, seq=1, agent_id=SECOND),
    ),
}
UNSTEADY = {
    "never connected": (build(),),
    "connected in an earlier build": (build(2), heartbeat(1, seq=9)),
    "connected in a later build, too": (build(2), heartbeat(2, seq=1), heartbeat(3, seq=2)),
    "an earlier build names the agent": (
        build(agent_id=FIRST),
        build(2),
        lifecycle(number=2, seq=5, agent_id=FIRST),
        heartbeat(2, seq=1, agent_id=SECOND),
    ),
    "disconnected": (build(), heartbeat(seq=1), disconnected(seq=2)),
    "the lifecycle names another agent with the same seq": (
        build(),
        lifecycle(seq=5, agent_id=FIRST),
        heartbeat(seq=5, agent_id=SECOND),
    ),
    "the lifecycle names another agent since": (
        build(),
        lifecycle(seq=5, agent_id=FIRST),
        heartbeat(seq=1, agent_id=SECOND),
    ),
}


@pytest.mark.parametrize("reports", STEADY.values(), ids=STEADY)
def test_a_heartbeat_of_a_steady_task_changes_nothing(core: Core, reports: tuple[Report, ...]) -> None:
    """Another heartbeat of the same build and agent, with any seq, leaves what the task shows as it is."""
    state = folded(core, reports)
    assert lease.is_steady(state)
    latest = state.connection.report
    for seq in (0, latest.seq, latest.seq + 1, 100):
        again = heartbeat(latest.build_number, seq=seq, agent_id=latest.agent_id)
        assert view_of(core, folded(core, [again], state)) == view_of(core, state)


@pytest.mark.parametrize("reports", UNSTEADY.values(), ids=UNSTEADY)
def test_a_task_whose_next_heartbeat_may_change_it_has_no_lease(core: Core, reports: tuple[Report, ...]) -> None:
    """Its heartbeats are folded like all other reports."""
    state = folded(core, reports)
    assert not lease.is_steady(state)
    assert lease.lease_of(state.connection.report.task_id if state.connection else FIRST, state) is None


def test_a_silent_agent_has_no_lease() -> None:
    """Its next heartbeat ends its silence."""
    core = unchanged_core()
    state = folded(core, [build(), heartbeat(seq=1)])
    assert lease.is_steady(state)
    silent = replace(state, silence=core.task.Silence(1, lost=True))
    assert (lease.is_steady(silent), lease.lease_of(TASK, silent)) == (False, None)
    assert view_of(core, folded(core, [heartbeat(seq=1)], silent)) != view_of(core, silent)


def test_a_later_heartbeat_of_another_agent_changes_the_task(core: Core) -> None:
    """The agent is the one that the report with the greater seq names."""
    state = folded(core, UNSTEADY["the lifecycle names another agent since"])
    after = folded(core, [heartbeat(seq=6, agent_id=SECOND)], state)
    assert view_of(core, state)["agent_id"] == str(FIRST)
    assert view_of(core, after)["agent_id"] == str(SECOND)


def test_a_lease_has_what_the_next_heartbeats_replace() -> None:
    """Merged into the state that was stored before, it gives the state with the latest heartbeat."""
    core = unchanged_core()
    before = folded(core, [build(2), heartbeat(1, seq=2), heartbeat(2, seq=3, agent_id=FIRST)])
    latest = heartbeat(2, seq=7, agent_id=SECOND, observed_at=NOON + MINUTE)
    after = fold.fold(before, latest, NOON + 2 * MINUTE).state
    found = lease.lease_of(TASK, after)
    assert found == lease.Lease(TASK, 2, SECOND, 7, NOON + MINUTE, NOON + 2 * MINUTE)
    merged = lease.merge_lease(before, found)
    assert merged == after
    assert merged.last_heartbeat == {1: NOON, 2: NOON + 2 * MINUTE}
    task = make_task(TASK, state=before)
    assert lease.with_lease(task, found) == make_task(TASK, state=after)


def test_heartbeats_of_one_batch_are_combined_only_if_they_are_of_one_build_and_agent() -> None:
    """Of several only the latest counts, unless one is of another build or agent: then all are folded one by one."""
    alike, mixed, moved, one = (UUID(int=number) for number in range(4))

    def beat(seq: int, number: int = 1, agent_id: UUID = FIRST) -> Report:
        return heartbeat(number, seq=seq, agent_id=agent_id, observed_at=NOON + seq * MINUTE)

    found = lease.summarize_heartbeats(
        {
            one: [beat(3)],
            mixed: [beat(7), beat(2, number=2), beat(5)],
            moved: [beat(1, agent_id=SECOND), beat(2), beat(3)],
            alike: [beat(4), beat(9), beat(6)],
        },
        datetime(2026, 11, 27, 17, tzinfo=UTC),
    )
    received_at = datetime(2026, 11, 27, 17, tzinfo=UTC)
    assert found == [
        lease.HeartbeatSummary(alike, 1, FIRST, 9, NOON + 9 * MINUTE, received_at),
        lease.HeartbeatSummary(one, 1, FIRST, 3, NOON + 3 * MINUTE, received_at),
    ]
