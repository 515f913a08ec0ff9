"""Read what an agent writes, in groups of messages: one record holds what follows from all messages of a group.

No other task runs while a group is handled, so nothing is acted on before it is recorded. Other tasks run between two
groups, and the agent's bounds are checked there: at a bound it has to wait, and nothing is dropped.
"""

from __future__ import annotations

import asyncio
import time
from itertools import islice
from typing import TYPE_CHECKING, Final

import structlog

from taskherd.runner.agents.acp.connection import AgentResponse, BadLine
from taskherd.runner.agents.acp.incoming import UNEXPECTED
from taskherd.runner.agents.final_room import LAST_BYTES
from taskherd.runner.agents.log_budget import LOG_SHARE

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskherd.runner.agents.acp.incoming import MessageHandler
    from taskherd.runner.agents.acp.parts import Parts

log = structlog.get_logger(__name__)

MAX_GROUP: Final = 32
"""Maximum number of messages that are handled at a time."""
GROUP_TIME: Final = 0.05
"""Seconds after which a group ends with the message that is just handled."""


class MessageReading:
    """The reading of one agent's messages."""

    def __init__(
        self, parts: Parts, messages: MessageHandler, awaited: dict[int, bool | None], stop: Callable[[], None]
    ) -> None:
        """``awaited``: lines whose writing a caller awaits; what the agent answers, it was given.

        ``stop`` stops the agent if a message has caused that it is given up.
        """
        self._parts = parts
        self._messages = messages
        self._awaited = awaited
        self._stop = stop

    def read(self) -> bool:
        """Handle the next messages if the agent may write now, and return whether it has written anything."""
        parts = self._parts
        if not parts.connection.has_room or not (parts.context.log_budget.has_room or parts.turn.cancelled):
            return False
        return self._read_group()

    async def read_rest(self) -> None:
        """Handle the messages that are left of an agent that has ended; what it asks in them is withdrawn."""
        parts, reader = self._parts, self._parts.connection.reader
        room = parts.context.final_room()
        while reader.has_more:
            if not await room.wait() and (size := reader.leave_out(LAST_BYTES)):
                parts.conversation.add_notice(parts.context.note_left_out(size))
            if not self._read_group():
                break
            await asyncio.sleep(0)

    def _read_group(self) -> bool:
        parts, connection = self._parts, self._parts.connection
        before, ends_at = connection.reader.position, time.monotonic() + GROUP_TIME
        try:
            with parts.recorder.gather():
                for message in islice(connection.receive(), MAX_GROUP):
                    if isinstance(message, AgentResponse) and message.line in self._awaited:
                        self._awaited[message.line] = True
                    self._messages.handle(message)
                    if not connection.has_room or time.monotonic() >= ends_at:
                        break
                if connection.is_closed:
                    parts.requests.withdraw_all()
        except UNEXPECTED:
            log.exception("messages of an agent could not be recorded", task_id=str(parts.context.journal.task_id))
            self._messages.handle(BadLine("it could not be recorded", ""))
        self._stop()
        size = connection.reader.position - before
        parts.context.log_budget.spend(0, size // LOG_SHARE)
        return size > 0
