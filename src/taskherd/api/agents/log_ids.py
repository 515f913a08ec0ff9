"""Ids of the log entries that agents add over HTTP: ranges of their own, above those of runners (``runner.log_ids``).

So whatever an agent adds replaces only what it has added itself. An input has the id of the prompt or input that the
agent was given, whichever id the agent gives it: it is in the log once, however often the agent adds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    from taskherd.store.agent_queries import GivenText

FIRST_AGENT_ID: Final = 2**62
_FIRST_GIVEN_ID: Final = FIRST_AGENT_ID + 2**61
_FIRST_NOTICE_ID: Final = _FIRST_GIVEN_ID + 2**59
_FIRST_GIVEN_INPUT_ID: Final = _FIRST_GIVEN_ID + 2**60


def of_output(number: int) -> int:
    """Return the id of an entry to which the agent gives a number; numbers from 2**61 on begin from 0 again."""
    return FIRST_AGENT_ID + number % 2**61


def of_notice(time: datetime) -> int:
    """Return the id of a notice by the API: no two of a task have the same time, in microseconds."""
    return _FIRST_NOTICE_ID + int(time.timestamp() * 1_000_000)


def of_input(given: GivenText) -> int:
    """Return the id of the entry of a prompt or input."""
    return (_FIRST_GIVEN_ID if given.is_prompt else _FIRST_GIVEN_INPUT_ID) + given.number
