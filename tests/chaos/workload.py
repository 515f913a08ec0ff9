"""A fixed workload: tasks of known ids, what is told about each, and the messages that say it, in a fixed order.

Half of the tasks have an orderly life, a quarter a nasty one, and the rest is only created. Reports come shuffled,
some twice, some in arrays, and many before the create of their task.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID, uuid4

from taskherd.broker.publish import OutgoingMessage
from taskherd.broker.topology import TopologyNames
from taskherd.domain.reports import (
    AgentHeartbeat,
    AgentLifecycle,
    AgentState,
    App,
    AppHealth,
    AppStatus,
    Health,
    JobStatus,
    Lifecycle,
    LogEntry,
    LogSource,
    Report,
    TaskLog,
    Transition,
    Workspace,
    WorkspaceBuild,
)
from tests.harness import histories

OWNER = UUID("0b9e4a52-3f7d-4e0c-8a44-7d1f2c3b5a91")
VERSION = UUID("7a2d9c11-58e4-4b6f-9f3a-2c8e6d4b1a91")
DIRECTORY = f"""
organizations: [{{id: 5f0c7d0e-6b1a-4c55-9d0e-0a6f1c9b7a91, name: acme, display_name: Acme}}]
users: [{{id: {OWNER}, username: al, name: Al, email: a@example.com, avatar_url: "", organizations: {{acme: admin}}}}]
templates:
  - id: 7a2d9c11-58e4-4b6f-9f3a-2c8e6d4b1a92
    organization: acme
    name: claude
    display_name: Claude
    icon: ""
    active_version: {VERSION}
    versions: [{{id: {VERSION}, name: v1, presets: [], run: {{}}}}]
"""
MAX_IN_ARRAY = 8


@dataclass(slots=True)
class Workload:
    """What is told of each task; ``parts`` cuts the messages that say it into so many, in order."""

    reports: dict[UUID, list[Report]] = field(default_factory=dict)
    doomed: list[UUID] = field(default_factory=list)
    """Tasks of which nothing is reported, for the test to delete once they exist."""

    messages: list[OutgoingMessage] = field(default_factory=list)

    def parts(self, many: int) -> list[list[OutgoingMessage]]:
        """The messages in so many parts of about the same size; at least one in each."""
        size = len(self.messages) / many
        return [self.messages[round(size * part) : round(size * (part + 1))] for part in range(many)]


def build(names: TopologyNames, dice: Random, *, tasks: int = 16, statuses: int = 6, nasty: bool = True) -> Workload:
    """The workload for so many tasks; ``statuses``: how many app statuses and log entries an orderly life has."""
    work = Workload()
    reports: list[Report] = []
    creates: list[OutgoingMessage] = []
    for place in range(tasks):
        task_id = UUID(int=dice.getrandbits(128), version=4)
        creates.append(create(names, task_id, f"Mend thing {place}"))
        match place % 4:
            case 0 | 1:
                told = orderly(task_id, statuses)
            case 2:
                told = [*histories.history(dice, task_id, most=30), *log(task_id, statuses)] if nasty else []
            case _:
                told = []
                work.doomed += [task_id] if place % 8 == 3 else []
        work.reports[task_id] = told
        reports += told
    reports += dice.sample(reports, len(reports) // 10)
    dice.shuffle(reports)
    work.messages = _mixed(dice, creates, _messages(names, dice, reports))
    return work


def create(names: TopologyNames, task_id: UUID, prompt: str) -> OutgoingMessage:
    """A create of this task, with nobody to answer."""
    return command(names, "task.create", task_id, owner_id=str(OWNER), template_version_id=str(VERSION), input=prompt)


def command(names: TopologyNames, kind: str, task_id: UUID, **fields: Any) -> OutgoingMessage:
    """A command about this task."""
    said = {"type": kind, "command_id": str(uuid4()), "task_id": str(task_id), "actor_id": str(OWNER), **fields}
    return OutgoingMessage(names.commands, kind, json.dumps(said).encode(), mandatory=True)


def message(names: TopologyNames, body: bytes, routing_key: str = "any") -> OutgoingMessage:
    """A message to the reports' exchange."""
    return OutgoingMessage(names.reports, routing_key, body, mandatory=True)


def said(reports: list[Report]) -> bytes:
    """The body that says these reports: an object for one, else an array."""
    bodies = [histories.body(report) for report in reports]
    return json.dumps(bodies[0] if len(bodies) == 1 else bodies).encode()


def orderly(task_id: UUID, statuses: int) -> list[Report]:
    """An agent that starts, works and talks in its first build, each of its words with a greater seq."""
    agent = UUID(int=task_id.int ^ 1)
    common: dict[str, Any] = {"task_id": task_id, "build_number": 1, "agent_id": agent}
    build: dict[str, Any] = {"task_id": task_id, "build_number": 1, "transition": Transition.START}
    app = App(UUID(int=task_id.int ^ 2), "web", None, Health.INITIALIZING)
    place = Workspace(UUID(int=task_id.int ^ 3), "workspace")
    told: list[Report] = [
        WorkspaceBuild(**build, seq=1, job_status=JobStatus.RUNNING, workspace=place),
        WorkspaceBuild(**build, seq=2, job_status=JobStatus.SUCCEEDED, agent_id=agent, app=app),
        AgentLifecycle(**common, seq=3, lifecycle=Lifecycle.STARTING),
        AgentLifecycle(**common, seq=4, lifecycle=Lifecycle.READY),
        AppHealth(**common, seq=5, health=Health.HEALTHY),
    ]
    for step in range(statuses):
        state = AgentState.IDLE if step == statuses - 1 else AgentState.WORKING
        told.append(AppStatus(**common, seq=10 + step, state=state, message=f"step {step}"))
        told.append(AgentHeartbeat(**common, seq=10 + step))
    return told + log(task_id, statuses)


def log(task_id: UUID, entries: int) -> list[Report]:
    """One report for each entry of a conversation, so that the loss of any single one would show."""
    return [
        TaskLog(
            task_id=task_id,
            build_number=1,
            seq=100 + number,
            entries=(LogEntry(number, LogSource.OUTPUT, f"line {number}", histories.NOON),),
        )
        for number in range(entries)
    ]


def _messages(names: TopologyNames, dice: Random, reports: list[Report]) -> list[OutgoingMessage]:
    """The reports in their order, singly or a few together."""
    messages: list[OutgoingMessage] = []
    while reports:
        size = dice.choice((1, 1, 1, dice.randrange(2, MAX_IN_ARRAY)))
        messages.append(message(names, said(reports[:size]), str(reports[0].task_id)))
        reports = reports[size:]
    return messages


def _mixed(dice: Random, creates: list[OutgoingMessage], messages: list[OutgoingMessage]) -> list[OutgoingMessage]:
    """The creates spread over the first half of the messages."""
    mixed = list(messages)
    for one in creates:
        mixed.insert(dice.randrange(1 + len(mixed) // 2), one)
    return mixed
