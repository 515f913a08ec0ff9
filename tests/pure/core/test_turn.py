"""A sweeper's visit: what a task is judged by, beside what was reported of it."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import uuid4

from taskherd.backoff import Backoff
from taskherd.core.obey import Surroundings
from taskherd.core.task import Task
from taskherd.core.turn import Look, Rules, Turn, take_look
from tests.histories import NOON
from tests.pure.core.organs import whole
from tests.pure.core.test_fold import patience
from tests.pure.core.test_liveness import running

SECOND = timedelta(seconds=1)
SINCE = NOON - timedelta(hours=1)


def found_silent(now: datetime, look: Look) -> bool:
    """Whether a visit finds the agent silent that was heard at noon."""
    core = whole()
    a, b, c, d, e = (uuid4() for _ in range(5))
    task = Task(a, b, c, d, e, None, "name", "", "prompt", 1, NOON, NOON, 1, None, running(core))
    turn = Turn(task, task)
    around = Surroundings({}, {}, {}, lambda prompt, _taken: prompt)
    take_look(turn, look, now, Rules(patience(core), Backoff(1, 1), around))
    return turn.known.memory.silence is not None


def test_nobody_is_found_silent_whom_the_count_of_the_silent_left_out() -> None:
    """An agent that had a moment left when the silent were counted is not lost a moment later, by another way."""
    over = NOON + 31 * SECOND
    assert found_silent(over, Look(SINCE))
    assert found_silent(over, Look(SINCE, counted_at=over))
    assert not found_silent(over, Look(SINCE, counted_at=NOON + 30 * SECOND))
    assert not found_silent(over, Look(SINCE, mass_held=True))
    assert not found_silent(over, Look(None))
