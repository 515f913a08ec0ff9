"""How fast an agent may add to its log."""

from __future__ import annotations

from taskherd.messages.limits import LOG_BURST
from taskherd.runner.agents.log_budget import LogBudget, LogRates


def test_bytes_and_entries_are_bounded_each() -> None:
    """A burst is admitted at once, then the rate; what was spent beyond the budget is waited for."""
    now = [0.0]
    budget = LogBudget(LogRates(bytes=100, entries=10), lambda: now[0])

    def has_room_at(time: float) -> bool:
        now[0] = time
        return budget.has_room

    assert has_room_at(0)
    budget.spend(1, 100 * LOG_BURST + 50)
    assert [has_room_at(time) for time in (0, 0.5, 0.6, 1_000)] == [False, False, True, True]
    budget.spend(10 * LOG_BURST, 0)
    assert [has_room_at(time) for time in (1_000, 1_000.1)] == [False, True]
