"""What was refused of the logs of agents is counted until their logs can say so."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from taskherd.api.agents import log_ids
from taskherd.api.agents.refused_logs import RefusedEntries, RefusedLogs
from taskherd.store.agent_queries import GivenText

LOUD, OTHER = UUID(int=1), UUID(int=2)
FIRST, LATER = datetime(2026, 3, 1, 12, tzinfo=UTC), datetime(2026, 3, 1, 13, tzinfo=UTC)


def test_what_is_refused_adds_up_until_it_is_taken() -> None:
    """Of each task by itself, since the first; what could not be published is counted on."""
    refused = RefusedLogs()
    refused.add(LOUD, RefusedEntries(2, 10, FIRST))
    refused.add(LOUD, RefusedEntries(1, 5, LATER))
    refused.add(OTHER, RefusedEntries(7, 70, LATER))
    taken = refused.take(LOUD)
    assert taken == RefusedEntries(3, 15, FIRST)
    assert refused.take(LOUD) is None
    refused.add(LOUD, RefusedEntries(1, 1, LATER))
    refused.add(LOUD, taken)
    assert refused.take(LOUD) == RefusedEntries(4, 16, FIRST)
    assert refused.take(OTHER) == RefusedEntries(7, 70, LATER)


def test_the_number_of_tasks_is_limited() -> None:
    """The one that was refused least recently is forgotten."""
    refused = RefusedLogs()
    for number in range(10_000):
        refused.add(UUID(int=number), RefusedEntries(1, 1, FIRST))
    refused.add(UUID(int=0), RefusedEntries(1, 1, FIRST))
    refused.add(UUID(int=10_000), RefusedEntries(1, 1, FIRST))
    assert refused.take(UUID(int=1)) is None
    assert refused.take(UUID(int=0)) == RefusedEntries(2, 2, FIRST)


def test_a_notice_replaces_no_entry_of_an_agent() -> None:
    """Its id is in a range of its own."""
    notices = [log_ids.of_notice(time) for time in (FIRST, LATER, datetime(9999, 12, 31, tzinfo=UTC))]
    assert notices == sorted(set(notices))
    assert notices[1] - notices[0] == 3_600 * 1_000_000
    assert log_ids.of_output(2**61 + 7) == log_ids.of_output(7) == 2**62 + 7
    below = [log_ids.of_output(2**61 - 1), log_ids.of_input(GivenText("Go", is_prompt=True, number=2**53))]
    assert max(below) < notices[0]
    assert notices[-1] < log_ids.of_input(GivenText("Go", is_prompt=False, number=0))
    assert log_ids.of_input(GivenText("Go", is_prompt=False, number=2**53)) < 2**63
