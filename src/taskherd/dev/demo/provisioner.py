"""The demo's small provisioner: takes work requests off the queue, starts and stops agents, and reports how it went."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, assert_never
from uuid import UUID, uuid5

from aiormq.abc import AbstractChannel

from taskherd.broker import topology
from taskherd.broker.connection import Link
from taskherd.broker.consume import Intake, Source
from taskherd.broker.delivery import Delivery
from taskherd.broker.publish import Publisher
from taskherd.broker.topology import Names
from taskherd.dev.demo import voice
from taskherd.dev.demo.cast import Part
from taskherd.dev.demo.crew import Crew
from taskherd.dev.demo.voice import Voice
from taskherd.wire.work import WORK, AgentInput, WorkRequest, WorkspaceDelete, WorkspaceStart, WorkspaceStop

POOL = "default"


class Provisioner:
    """Does each request once, whatever is repeated."""

    def __init__(self, consuming: Link, publisher: Publisher, names: Names, crew: Crew, parts: Sequence[Part]) -> None:
        self._publisher = publisher
        self._names = names
        self._crew = crew
        self._parts = {part.task_id: part for part in parts}
        self._done: set[tuple[UUID, int]] = set()
        self._intake = Intake(consuming, self._prepare, prefetch=100)

    async def run(self) -> None:
        """Take requests until cancelled; each is worked on by itself."""
        self._intake.start()
        try:
            async with asyncio.TaskGroup() as group:
                while deliveries := await self._intake.batch(100, 0):
                    for delivery in deliveries:
                        if (work := self._take(delivery)) is not None:
                            group.create_task(work)
                    await self._intake.ack(deliveries)
        finally:
            await self._intake.close()

    async def start(self, part: Part, build_number: int, workspace_name: str) -> None:
        """Bring a workspace up with its agent in it, and report it."""
        self._done.add((part.task_id, build_number))
        speaks = self._voice(part.task_id, build_number, part.agent_id)
        workspace = {"id": str(uuid5(part.task_id, "workspace")), "name": workspace_name}
        app = {"id": str(uuid5(part.task_id, "app")), "slug": "checks", "health": "initializing"}
        await speaks.say(voice.build("start", "running", workspace=workspace))
        self._crew.start(part, build_number)
        await speaks.say(voice.build("start", "succeeded", workspace=workspace, app=app))

    def _take(self, delivery: Delivery) -> Coroutine[Any, Any, None] | None:
        """The work that a request asks for; None where it was done before."""
        request = WORK.validate_json(delivery.body)
        done = (request.task_id, request.build_number)
        if isinstance(request, AgentInput) or done in self._done:
            return None
        self._done.add(done)
        part = self._parts.get(request.task_id)
        return self._left_over(request) if part is None else self._carry_out(request, part)

    async def _carry_out(self, request: WorkRequest, part: Part) -> None:
        match request:
            case WorkspaceStart():
                await self.start(part, request.build_number, request.task_name)
            case WorkspaceStop():
                await self._take_down("stop", request, part)
            case WorkspaceDelete():
                await self._take_down("delete", request, part)
            case AgentInput():
                return
            case _:
                assert_never(request)

    async def _take_down(self, transition: str, request: WorkRequest, part: Part) -> None:
        speaks = self._voice(request.task_id, request.build_number)
        await speaks.say(voice.build(transition, "running"))
        await asyncio.to_thread(self._crew.end, part)
        await speaks.say(voice.build(transition, "succeeded"))

    async def _left_over(self, request: WorkRequest) -> None:
        """Answer for a task of an earlier demo, which was cut short: nothing of it is there any more."""
        transition = request.type.removeprefix("workspace.")
        gone = {"error": "its demo was cut short"} if transition == "start" else {}
        job_status = "failed" if gone else "succeeded"
        speaks = self._voice(request.task_id, request.build_number)
        await speaks.say(voice.build(transition, job_status, **gone))

    def _voice(self, task_id: UUID, build_number: int, agent_id: UUID | None = None) -> Voice:
        return Voice(self._publisher, self._names, task_id, build_number, agent_id)

    async def _prepare(self, channel: AbstractChannel) -> Sequence[Source]:
        return [Source(await topology.declare_work_queue(channel, self._names, POOL))]
