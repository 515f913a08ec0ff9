"""Where the demo gives its commands, and waits for the reply to each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID, uuid4

import orjson
from aiormq.abc import AbstractChannel

from taskherd.broker import topology
from taskherd.broker.connection import Link
from taskherd.broker.consume import Intake, Source
from taskherd.broker.publish import Publisher
from taskherd.broker.topology import Names
from taskherd.dev.demo.cast import Part
from taskherd.errors import Unavailable

REPLY_WITHIN: Final = 15.0
_REPLIES_MOST: Final = 100


class Desk:
    """Gives commands in the name of `user_id`, for a template version."""

    def __init__(
        self, consuming: Link, publisher: Publisher, names: Names, user_id: UUID, template_version_id: UUID
    ) -> None:
        self._publisher = publisher
        self._names = names
        self._user_id = user_id
        self._template_version_id = template_version_id
        self._replies = Intake(consuming, self._prepare, prefetch=_REPLIES_MOST)
        self._queue = ""
        self._open = asyncio.Event()
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}

    async def run(self) -> None:
        """Take replies until cancelled."""
        self._replies.start()
        try:
            while deliveries := await self._replies.batch(_REPLIES_MOST, 0):
                for delivery in deliveries:
                    waiting = self._waiting.pop(delivery.correlation_id or "", None)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(orjson.loads(delivery.body))
                await self._replies.ack(deliveries)
        finally:
            await self._replies.close()

    async def create(self, part: Part) -> dict[str, Any]:
        """Create the task of a part; the reply."""
        return await self._ask(
            "task.create",
            part,
            owner_id=str(self._user_id),
            template_version_id=str(self._template_version_id),
            input=part.prompt,
        )

    async def delete(self, part: Part) -> dict[str, Any]:
        """Delete the task of a part; the reply."""
        return await self._ask("task.delete", part)

    async def pause(self, part: Part) -> dict[str, Any]:
        """Pause the task of a part; the reply."""
        return await self._ask("task.pause", part)

    async def _ask(self, command: str, part: Part, **more: str) -> dict[str, Any]:
        """Give a command and return its reply; raises Unavailable when none comes within 15 seconds."""
        command_id = str(uuid4())
        said = {"type": command, "command_id": command_id, "task_id": str(part.task_id), "actor_id": str(self._user_id)}
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(REPLY_WITHIN):
                await self._open.wait()
                self._waiting[command_id] = reply
                await self._publisher.publish(
                    self._names.commands,
                    command,
                    orjson.dumps({**said, **more}),
                    reply_to=self._queue,
                    correlation_id=command_id,
                )
                return await reply
        except TimeoutError:
            raise Unavailable(f"no reply to {command} within {REPLY_WITHIN:.0f} s") from None
        finally:
            self._waiting.pop(command_id, None)

    async def _prepare(self, channel: AbstractChannel) -> Sequence[Source]:
        self._queue = await topology.declare_own_queue(channel, length=_REPLIES_MOST)
        self._open.set()
        return [Source(self._queue)]
