"""The relay: tells what was committed. Events go out at once from memory, and again from the outbox until confirmed.

Nothing here holds back an ack: an event is in the outbox before its report is acked, and leaves it after the broker has
confirmed it. What is dropped from memory is found in the outbox a moment later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

import orjson

from taskherd.broker.publish import Outgoing, Published
from taskherd.errors import Unavailable
from taskherd.flow import work
from taskherd.flow.patience import pause
from taskherd.flow.saving import cause_out
from taskherd.observe.failpoints import Failpoint
from taskherd.store import outbox
from taskherd.store.engine import Retry, transaction
from taskherd.wire import document, events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pamqp.common import FieldTable

    from taskherd.flow.batch import Change
    from taskherd.flow.ground import Ground
    from taskherd.observe.tracing import Carrier

BUFFER_MOST = 20_000
"""Changes held in memory to be told; beyond, they wait in the outbox alone."""

AT_ONCE = 1_000
"""Events told in one go."""

LEFT_BEHIND = timedelta(seconds=3)
"""An event this old in the outbox was not told from memory, or not confirmed."""


class Relay:
    """Holds changes until they are told; ``run`` tells them."""

    def __init__(self, ground: Ground, every: float) -> None:
        """Look into the outbox ``every`` so many seconds."""
        self._ground = ground
        self._every = every
        self._changes: deque[tuple[Change, Carrier]] = deque()
        self._bell = asyncio.Event()
        self._looked_at = monotonic()
        self._stopping = False

    def offer(self, changes: Sequence[Change], *, requested: bool) -> None:
        """Take committed changes to tell, and know that requests are due."""
        trace = self._ground.tracing.current()
        self._changes.extend((change, trace) for change in changes[: max(0, BUFFER_MOST - len(self._changes))])
        if changes or requested:
            self._bell.set()

    async def run(self) -> None:
        """Tell until stopped; an outage is waited out."""
        failures = 0
        while not self._stopping:
            try:
                await self._round()
                failures = 0
            except (Unavailable, Retry) as error:
                failures += 1
                self._ground.trouble(str(error))
                await asyncio.sleep(pause(failures))

    async def stop(self) -> None:
        """Tell what is in hand once more, and end."""
        self._stopping = True
        self._bell.set()
        with suppress(Unavailable, Retry):
            await self._told()

    async def _round(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._every):
                await self._bell.wait()
        self._bell.clear()
        await self._told()
        while await work.send_due(self._ground, self._ground.now()) == work.AT_ONCE:
            continue
        if monotonic() - self._looked_at >= self._every:
            self._looked_at = monotonic()
            while await tell_left_behind(self._ground, AT_ONCE) == AT_ONCE:
                continue

    async def _told(self) -> None:
        while self._changes:
            changes = [self._changes.popleft() for _ in range(min(AT_ONCE, len(self._changes)))]
            told = await _events(self._ground, [change for change, _ in changes])
            await tell(self._ground, told, [trace for _, trace in changes])


async def _events(ground: Ground, changes: Sequence[Change]) -> list[events.Event]:
    names = await ground.book.look_up((change.task.owner_id, change.task.template_version_id) for change in changes)
    rendered = []
    for change in changes:
        task = change.task
        known = names[task.owner_id, task.template_version_id]
        rendered.append(
            events.Event(
                task_id=task.id,
                version=task.version,
                kind=change.kind,
                occurred_at=task.updated_at,
                task=document.render(orjson.loads(change.own), task.prompt, known, task.updated_at),
                changes=change.changes,
                cause=cause_out(change.cause),
            )
        )
    return rendered


async def tell(ground: Ground, told: Sequence[events.Event], traces: Sequence[Carrier] = ()) -> int:
    """Publish events and, of those that were confirmed, take them out of the outbox; how many. Raises Unavailable.

    ``traces``: what the events come from.
    """
    messages = events.pack(told)
    ground.hit(Failpoint.RELAY_PUBLISH)
    with ground.tracing.span("publish", links=traces, events=len(told)):
        headers: FieldTable = {**ground.tracing.current()}
        outcomes = await ground.publisher.publish_many(
            [
                Outgoing(ground.names.events, message.routing_key, message.body, events.CONTENT_TYPE, headers or None)
                for message in messages
            ]
        )
    ground.hit(Failpoint.RELAY_CONFIRM)
    confirmed = [
        event
        for message, outcome in zip(messages, outcomes, strict=True)
        if isinstance(outcome, Published)
        for event in message.events
    ]
    async with transaction(ground.engine) as connection:
        await outbox.published(connection, [(event.task_id, event.version) for event in confirmed])
        ground.hit(Failpoint.RELAY_MARK)
    now = ground.now()
    for event in confirmed:
        ground.metrics.publish_lag_seconds.observe((now - event.occurred_at).total_seconds())
    ground.metrics.events_published.inc(len(confirmed))
    failed = [outcome for outcome in outcomes if isinstance(outcome, Unavailable)]
    if failed:
        raise failed[0]
    return len(confirmed)


async def tell_left_behind(ground: Ground, limit: int) -> int:
    """Tell up to ``limit`` events that have been in the outbox for a while; how many there were."""
    async with transaction(ground.engine) as connection:
        rows = await outbox.due(connection, ground.now() - LEFT_BEHIND, limit)
    ground.hit(Failpoint.RELAY_SELECT)
    if not rows:
        return 0
    names = await ground.book.look_up((row.owner_id, row.template_version_id) for row in rows)
    told = [
        events.Event(
            task_id=row.task_id,
            version=row.version,
            kind=events.Kind(row.kind),
            occurred_at=row.occurred_at,
            task=document.render(
                orjson.loads(row.document), row.prompt, names[row.owner_id, row.template_version_id], row.occurred_at
            ),
            changes=row.changes,
            cause=orjson.loads(row.cause),
        )
        for row in rows
    ]
    await tell(ground, told)
    return len(rows)
