"""Publish committed changes: immediately from memory, and again from the outbox until the broker confirms them.

No ack waits for the relay: an event is in the outbox before its report is acked, and is removed after the broker has
confirmed it. Changes that are dropped from memory are published from the outbox a moment later.

Versions of a task get their positions in the feed in order. If another worker has committed the version before, and has
not removed it from the outbox yet, an event stays there, and is tried again with the next ones, until it is stale. If
somebody keeps rows locked, the events of their tasks wait for that, and no others do (``locked_events``).

Four loops run in parallel, so that no event waits for another's database statements: one publishes, one removes
confirmed events from the outbox, one polls it for stale events, and one looks which locked rows are free again.
``request_sender`` sends work requests.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import structlog

from taskherd import retry
from taskherd.broker.publisher import OutgoingMessage, PublishOutcome, Unconfirmed
from taskherd.domain.liveness import MAX_SKEW
from taskherd.errors import Retry, Unavailable
from taskherd.messages import document, events
from taskherd.observability.failpoints import Failpoint
from taskherd.store import outbox
from taskherd.store.engine import LockTimeout, StatementTimeout, transaction
from taskherd.store.outbox import OutboxEvent
from taskherd.worker.locked_events import RECHECK_EVERY, ConfirmedEvent, LockedEvents
from taskherd.worker.request_sender import RequestSender

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.broker import FieldTable
    from taskherd.observability.tracing import Carrier
    from taskherd.worker.batch import CommittedChange
    from taskherd.worker.context import WorkerContext
    from taskherd.worker.request_sender import StartedRequest

log = structlog.get_logger(__name__)

MAX_BUFFER = 20_000
"""Maximum number of changes in memory; further ones are published from the outbox."""

MAX_BUFFER_BYTES = 32 * 1024 * 1024
"""Their size at which further ones are published from the outbox too: a prompt has up to 256 KiB."""

MAX_EVENTS_PER_ROUND = 1_000
"""Maximum number of events that one round of the relay publishes."""

MAX_PUBLISHING = 4
"""Maximum number of publishes that wait for the broker's confirm at the same time."""

MARK_AFTER = 0.05
"""Seconds in which confirmed events are collected before they are removed from the outbox, to save commits."""

MAX_MARKED = 4_000
"""Maximum number of events that one statement removes from the outbox: more might take longer than a statement may."""

MAX_WAITING = 20_000
"""Maximum number of confirmed events that wait for earlier ones of their tasks; others do until they are stale."""

MAX_CONFIRMED = 100_000
"""Maximum number of confirmed events that are to leave the outbox; the oldest are left there until they are stale."""

STALE_AFTER = timedelta(seconds=3)
"""An event that is in the outbox for longer was not published from memory, or not confirmed."""


class Relay:
    """Buffers committed changes; ``run`` publishes them."""

    def __init__(self, context: WorkerContext, every: float) -> None:
        """Create the relay. It polls the outbox ``every`` seconds."""
        self._context = context
        self._every = every
        self._changes: deque[tuple[CommittedChange, Carrier]] = deque()
        self._bytes = 0
        """The size of these changes, and of those that are being published."""
        self._requests = RequestSender(context, every)
        self._confirmed: list[ConfirmedEvent] = []
        self._locked = LockedEvents()
        self._slots = asyncio.Semaphore(MAX_PUBLISHING)
        self._changed, self._to_mark, self._stopping = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._failures = 0
        self._all_published = False

    def offer(self, changes: Sequence[CommittedChange], *, has_due_requests: bool) -> None:
        """Buffer committed changes for publishing as far as there is room, and have due work requests sent."""
        trace = self._context.tracing.current()
        for change in changes:
            if len(self._changes) >= MAX_BUFFER or self._bytes >= MAX_BUFFER_BYTES:
                break
            self._changes.append((change, trace))
            self._bytes += _size(change)
        if changes:
            self._changed.set()
        if has_due_requests:
            self._requests.wake()

    def send(self, requests: Sequence[StartedRequest]) -> None:
        """Have work requests sent whose first attempt is committed."""
        if requests:
            self._requests.send(requests)

    async def run(self) -> None:
        """Publish until stopped, then drain the in-memory buffer. Retry during outages."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._requests.run(), name="relay requests")
            loops.create_task(self._poll_loop(), name="relay poll")
            loops.create_task(self._mark_loop(), name="relay mark")
            loops.create_task(self._release_loop(), name="relay release")
            await self._publish_loop()

    def stop(self) -> None:
        """Make ``run`` publish what is left in memory, and end."""
        self._requests.stop()
        self._stopping.set()
        self._changed.set()

    async def _publish_loop(self) -> None:
        async with asyncio.TaskGroup() as publishing:
            while self._changes or not self._stopping.is_set():
                await self._changed.wait()
                self._changed.clear()
                while self._changes:
                    await self._publish_once(publishing)
        self._all_published = True
        self._to_mark.set()

    async def _publish_once(self, publishing: asyncio.TaskGroup) -> None:
        """Start to publish the next changes from memory."""
        batch = [self._changes.popleft() for _ in range(min(MAX_EVENTS_PER_ROUND, len(self._changes)))]
        changes, traces = zip(*batch, strict=True)
        size = sum(map(_size, changes))
        try:
            rendered = await _render(self._context, [_outbox_event(change) for change in changes])
        except (Unavailable, Retry) as error:
            self._bytes -= size
            await self._back_off(error)
            return
        await self._slots.acquire()
        publishing.create_task(self._publish_in_slot(rendered, traces, size), name="relay publish")

    async def _publish_in_slot(
        self, to_publish: Sequence[events.ChangeEvent], traces: Sequence[Carrier], size: int
    ) -> None:
        try:
            confirmed, error = await publish(self._context, to_publish, traces)
            self._add_confirmed([*map(_identity, confirmed)])
            if error is None:
                self._failures = 0
            else:
                await self._back_off(error)  # before the slot is released, so that an outage slows down all publishes
        finally:
            self._bytes -= size
            self._slots.release()

    def _add_confirmed(self, confirmed: Sequence[ConfirmedEvent]) -> None:
        """Have confirmed events removed from the outbox. Without room, the oldest are published again from there."""
        self._confirmed += confirmed
        if (excess := len(self._confirmed) - MAX_CONFIRMED) > 0:
            del self._confirmed[:excess]
            log.warning("too many confirmed events wait, the oldest are published again later", dropped=excess)
        self._to_mark.set()

    async def _back_off(self, error: Unavailable | Retry) -> None:
        """Report the error and wait. Events that were not published are still in the outbox."""
        self._failures += 1
        self._note(error)
        await asyncio.sleep(retry.delay(self._failures))

    def _note(self, error: Unavailable | Retry) -> None:
        note = self._context.on_unconfirmed if isinstance(error, Unconfirmed) else self._context.on_error
        note(str(error))

    async def _mark_loop(self) -> None:
        while not self._all_published or self._confirmed:
            await self._to_mark.wait()
            if not self._stopping.is_set():
                await asyncio.sleep(MARK_AFTER)
            self._to_mark.clear()
            await self._mark_once()

    async def _mark_once(self) -> None:
        """Remove the confirmed events from the outbox, in parts; on failure they are published again."""
        confirmed, self._confirmed = self._confirmed, []
        waiting: list[ConfirmedEvent] = []
        with suppress(Unavailable):  # stopping
            for start in range(0, len(confirmed), MAX_MARKED):
                part = confirmed[start : start + MAX_MARKED]
                mark = partial(mark_published, self._context, part, self._locked)
                waiting += await self._context.until_stopped(mark, "database")
        if waiting and not self._stopping.is_set():
            not_stale = self._context.now() - STALE_AFTER
            self._confirmed += [event for event in waiting if event.occurred_at > not_stale][:MAX_WAITING]
            self._to_mark.set()

    async def _release_loop(self) -> None:
        """Have the events of tasks whose rows are no longer locked leave the outbox, until stopped."""
        while not self._stopping.is_set():
            await retry.wait(self._stopping, RECHECK_EVERY)
            if self._locked.is_empty:
                continue
            try:
                self._add_confirmed(await self._locked.release(self._context))
            except (Unavailable, Retry) as error:
                self._note(error)

    async def _poll_loop(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            await retry.wait(self._stopping, self._every)
            try:
                await self._poll_once()
                failures = 0
            except (Unavailable, Retry) as error:
                failures += 1
                self._note(error)
                await retry.wait(self._stopping, retry.delay(failures))

    async def _poll_once(self) -> None:
        """Publish all stale events."""
        while await republish_stale(self._context, MAX_EVENTS_PER_ROUND, self._locked):
            continue


async def _render(context: WorkerContext, unpublished: Sequence[OutboxEvent]) -> list[events.ChangeEvent]:
    """Render the events with the complete documents, which need the current names of the directory."""
    names = await context.directory_cache.look_up((row.owner_id, row.template_version_id) for row in unpublished)
    return [
        events.ChangeEvent(
            task_id=row.task_id,
            version=row.version,
            kind=events.EventKind(row.kind),
            occurred_at=row.occurred_at,
            task=document.render_json(
                row.document, row.prompt, names[row.owner_id, row.template_version_id], row.occurred_at
            ),
            changes=row.changes,
            cause=row.cause,
        )
        for row in unpublished
    ]


def _size(change: CommittedChange) -> int:
    """Return about how much memory a change takes, as far as that has no bound of its own."""
    return len(change.core_document) + len(change.task.prompt)


def _outbox_event(change: CommittedChange) -> OutboxEvent:
    """Return a committed change as it would be read from the outbox."""
    task = change.task
    return OutboxEvent(
        task.id,
        task.version,
        task.updated_at,
        task.owner_id,
        task.template_version_id,
        change.kind,
        change.core_document,
        change.changes,
        change.cause,
        task.prompt,
    )


async def publish(
    context: WorkerContext, to_publish: Sequence[events.ChangeEvent], traces: Sequence[Carrier] = ()
) -> tuple[list[events.ChangeEvent], Unavailable | None]:
    """Publish events that were caused in ``traces``.

    Returns:
        The events that the broker confirmed, and the error if it did not confirm all.
    """
    messages = events.pack_events(to_publish)
    context.failpoint(Failpoint.RELAY_PUBLISH)
    with context.tracing.span("publish", links=traces, events=len(to_publish)):
        headers: FieldTable = {**context.tracing.current()}
        outcomes = await context.publisher.publish_many(
            [
                OutgoingMessage(
                    context.names.events, message.routing_key, message.body, events.CONTENT_TYPE, headers or None
                )
                for message in messages
            ]
        )
    context.failpoint(Failpoint.RELAY_CONFIRM)
    confirmed = [
        event
        for message, outcome in zip(messages, outcomes, strict=True)
        if isinstance(outcome, PublishOutcome)
        for event in message.events
    ]
    now = context.now()
    for event in confirmed:
        context.metrics.publish_lag_seconds.observe((now - event.occurred_at).total_seconds())
    context.metrics.events_published.inc(len(confirmed))
    return confirmed, next((outcome for outcome in outcomes if isinstance(outcome, Unavailable)), None)


def _identity(event: events.ChangeEvent) -> ConfirmedEvent:
    return ConfirmedEvent(event.task_id, event.version, event.occurred_at)


async def mark_published(
    context: WorkerContext, confirmed: Sequence[ConfirmedEvent], locked: LockedEvents
) -> list[ConfirmedEvent]:
    """Remove confirmed events from the outbox, but those of locked tasks, and wake the readers of the feed.

    What is in the way for too long is looked for: the events of its tasks wait in ``locked``, the others are removed.
    Return those that stay in the outbox without waiting there, mostly because an earlier one of their task does.

    Raises:
        Unavailable: the database cannot be reached.
        Retry: it conflicted with other transactions.
    """
    try:
        return await _mark(context, confirmed, locked)
    except (LockTimeout, StatementTimeout):  # the latter after several waits, each of which ended in time
        if not await locked.look(context, confirmed):
            raise
        return await _mark(context, confirmed, locked)


async def _mark(
    context: WorkerContext, confirmed: Sequence[ConfirmedEvent], locked: LockedEvents
) -> list[ConfirmedEvent]:
    others, staying = locked.divide(confirmed)
    if not others:
        return staying
    keys = [(event.task_id, event.version) for event in others]
    async with transaction(context.engine) as connection:
        removed = await outbox.mark_published(connection, keys)
        waiting = set() if removed == len(keys) else await outbox.unpublished(connection, keys)
        context.failpoint(Failpoint.RELAY_MARK)
    context.wakeups.notify()
    return staying + [event for event, key in zip(others, keys, strict=True) if key in waiting]


async def republish_stale(context: WorkerContext, limit: int, locked: LockedEvents) -> bool:
    """Publish up to ``limit`` stale events from the outbox, and return whether more may be there that can leave it.

    Those that wait in ``locked`` are not published again.

    Raises:
        Unavailable: the database or the broker cannot be reached.
        Retry: the database conflicted with other transactions.
    """
    now = context.now()
    async with transaction(context.engine) as connection:
        rows = await outbox.stale(connection, now - STALE_AFTER, now + MAX_SKEW, limit, locked.keys())
    context.failpoint(Failpoint.RELAY_SELECT)
    if not rows:
        return False
    confirmed, error = await publish(context, await _render(context, rows))
    waiting = await mark_published(context, [*map(_identity, confirmed)], locked)
    if error is not None:
        raise error
    return len(waiting) < len(confirmed)
