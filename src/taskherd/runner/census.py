"""Asks the worker which of the tasks on this disk are no more.

A runner has no access to the database, and needs none: it gives each task a command that can't be carried out, an
update of its input to nothing. Of a task that is unknown or deleted the worker says so (404); of any other it says that
an input is required (400), and in neither case does anything change.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import orjson

from taskherd.broker import topology
from taskherd.broker.consume import Source
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiormq.abc import AbstractChannel

    from taskherd.broker.consume import Intake
    from taskherd.broker.publish import Publisher
    from taskherd.broker.topology import Names

COMMAND = "task.update_input"
NOT_FOUND = 404
REPLIES_MOST = 1_000
ASK_AGAIN = 15.0
"""Seconds after which those are asked for again that were not answered."""
LISTENING = 0.1
"""Seconds between two looks whether answers could reach us: a question without an answer is not asked."""
HOLD_FROM, HOLD_SHARE = 5, 0.55
"""So many unknown tasks, and such a share of all, are not believed: this may be the wrong worker, or an old backup."""


class Census:
    """Asks once for each task, until all are answered."""

    def __init__(self, publisher: Publisher, names: Names, trouble: Callable[[str], None]) -> None:
        self._publisher = publisher
        self._names = names
        self._trouble = trouble
        self._reply_queue = ""
        self.replies: Intake

    async def prepare(self, channel: AbstractChannel) -> Sequence[Source]:
        """Declare the queue that the answers come to."""
        self._reply_queue = await topology.declare_own_queue(channel, length=REPLIES_MOST)
        return [Source(self._reply_queue)]

    async def unknown(self, tasks: Sequence[UUID]) -> list[UUID]:
        """Return the tasks that are no more, once the worker has answered for all of them; none if nearly all are."""
        waiting = {str(task_id): task_id for task_id in tasks}
        gone: list[UUID] = []
        while waiting:
            while not self.replies.consuming:  # noqa: ASYNC110 - it has no event for that
                await asyncio.sleep(LISTENING)
            await self._ask(list(waiting.values())[:REPLIES_MOST])
            try:
                async with asyncio.timeout(ASK_AGAIN):
                    while waiting:
                        for answer in await self.replies.batch(REPLIES_MOST, 0):
                            task_id = waiting.pop(answer.correlation_id or "", None)
                            if task_id is not None and _not_found(answer.body):
                                gone.append(task_id)
                            await self.replies.ack([answer])
            except TimeoutError:
                self._trouble(f"{len(waiting)} tasks on this disk were asked for, and nobody answered")
        if len(gone) >= HOLD_FROM and len(gone) >= HOLD_SHARE * len(tasks):
            self._trouble(f"{len(gone)} of {len(tasks)} tasks on this disk are unknown to the worker; they are kept")
            return []
        return gone

    async def _ask(self, tasks: Sequence[UUID]) -> None:
        for task_id in tasks:
            command = {"type": COMMAND, "command_id": uuid4(), "task_id": task_id, "actor_id": UUID(int=0), "input": ""}
            try:
                await self._publisher.publish(
                    self._names.commands,
                    COMMAND,
                    orjson.dumps(command),
                    reply_to=self._reply_queue,
                    correlation_id=str(task_id),
                    expiration=ASK_AGAIN,
                )
            except Unavailable as error:
                self._trouble(str(error))
                return


def _not_found(body: bytes) -> bool:
    """Whether an answer says that there is no such task; one that can't be read says nothing."""
    try:
        answer = orjson.loads(body)
        return bool(answer["ok"] is False and answer["error"]["status"] == NOT_FOUND)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False
