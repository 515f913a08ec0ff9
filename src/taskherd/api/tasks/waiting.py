"""Waiting for a task: a read that is answered when its status or state is what was asked for, or the time is up.

Who waits hangs on the tail, so that it costs the database two reads however long it takes.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import orjson

from taskherd.api import etags
from taskherd.api.answers import Answer, invalid, not_found
from taskherd.api.changes import Wanted
from taskherd.api.route import Query
from taskherd.api.tasks import reading
from taskherd.core.reports import State
from taskherd.core.view import Status
from taskherd.settings import durations

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from taskherd.api.ask import Ask
    from taskherd.api.tail import Follower
    from taskherd.store.reader import Row

WAIT_MOST: Final = 60.0
TIMED_OUT: Final = "X-Taskherd-Timed-Out"
_VALUES: Final = frozenset(Status) | frozenset(State) - {State.FAILURE}
_UNTIL: Final = "idle,complete,failed"
_DEFAULT: Final = frozenset(_UNTIL.split(","))

QUERY: Final = (
    Query(
        "wait",
        "How long to wait, at most 60s.",
        {"type": "string", "pattern": r"^(([0-5]?[0-9](\.[0-9]{1,3})?|60)s?|([0-5]?[0-9]{1,4}|60000)ms)$"},
    ),
    Query(
        "until",
        f"Values of status or of current_state.state, separated by commas; else {_UNTIL}.",
        {"type": "string", "pattern": "^({0})(,({0}))*$".format("|".join(sorted(_VALUES)))},
    ),
)


async def get(ask: Ask) -> Answer:
    """One task, at once or when it is as it was waited for."""
    until = _until(ask)
    if "wait" not in ask.query:
        return await reading.get(ask)
    within = _within(ask)
    deadline = asyncio.get_running_loop().time() + within
    row = await reading.found(ask)
    if until.isdisjoint(_values(row)):
        tail = ask.house.tail
        async with tail.joined():
            follower = tail.follow(Wanted(ask.caller.user_id, task=row["id"]), await tail.position())
            assert follower is not None  # nothing came between the position and this
            try:
                return await _waited(ask, follower, until, deadline)
            finally:
                tail.leave(follower)
    return reading.shown(ask, row)


async def _waited(ask: Ask, follower: Follower, until: AbstractSet[str], deadline: float) -> Answer:
    row = await reading.found(ask)  # what changed before the tail was joined
    if not until.isdisjoint(_values(row)):
        return reading.shown(ask, row)
    loop = asyncio.get_running_loop()
    while not follower.ended and (left := deadline - loop.time()) > 0:
        for change in await follower.next(left):
            if change.deleted:
                raise not_found()
            if change.version > row["version"] and not until.isdisjoint(change.values):
                tag = {"ETag": etags.of_document(change.version, change.revision)}
                return Answer(200, orjson.dumps(change.document), tag)
    answer = reading.shown(ask, await reading.found(ask))
    return replace(answer, headers={**answer.headers, TIMED_OUT: "true"})


def _values(row: Row) -> set[str]:
    own = orjson.loads(row["own"])
    state = own["current_state"]
    return {own["status"], "" if state is None else state["state"]}


def _within(ask: Ask) -> float:
    try:
        within = durations.parse(ask.query["wait"])
    except ValueError:
        within = -1.0
    if not 0 <= within <= WAIT_MOST:
        raise invalid(("wait", f"A duration such as 30s was expected, at most {WAIT_MOST:g}s."))
    return within


def _until(ask: Ask) -> AbstractSet[str]:
    said = ask.query.get("until")
    if said is None:
        return _DEFAULT
    until = {each.strip().lower() for each in said.split(",")}
    if not until <= _VALUES:
        raise invalid(("until", f"Some of these were expected, separated by commas: {', '.join(sorted(_VALUES))}."))
    return until
