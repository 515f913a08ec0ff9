"""A deterministic workload: tasks with known ids, the reports about each, and the messages in a fixed order.

Half of the tasks have a regular lifecycle, a quarter an adversarial one, and the others are only created. Reports are
shuffled, some are sent twice, some in arrays, and many before the create of their task.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID, uuid4

from taskherd.broker.publisher import OutgoingMessage
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
    versions: [{{id: {VERSION}, name: v1, presets: [], run: {{command: [none]}}}}]
"""
MAX_ARRAY_LENGTH = 8


@dataclass(slots=True)
class ChaosWorkload:
    """The reports about each task, and the messages to send."""

    reports: dict[UUID, list[Report]] = field(default_factory=dict)
    to_delete: list[UUID] = field(default_factory=list)
    """Tasks without reports, which the test deletes once they exist."""

    messages: list[OutgoingMessage] = field(default_factory=list)

    def split(self, count: int) -> list[list[OutgoingMessage]]:
        """Split the messages, in order, into ``count`` parts of about the same size."""
        size = len(self.messages) / count
        return [self.messages[round(size * part) : round(size * (part + 1))] for part in range(count)]


def build(
    names: TopologyNames, random: Random, *, tasks: int = 16, statuses: int = 6, adversarial: bool = True
) -> ChaosWorkload:
    """Build a workload. ``statuses``: number of app statuses and log entries in a regular lifecycle."""
    work = ChaosWorkload()
    reports: list[Report] = []
    creates: list[OutgoingMessage] = []
    for number in range(tasks):
        task_id = UUID(int=random.getrandbits(128), version=4)
        creates.append(create(names, task_id, f"Fix bug {number}"))
        match number % 4:
            case 0 | 1:
                history = regular(task_id, statuses)
            case 2:
                history = (
                    [*histories.history(random, task_id, max_size=30), *log(task_id, statuses)] if adversarial else []
                )
            case _:
                history = []
                work.to_delete += [task_id] if number % 8 == 3 else []
        work.reports[task_id] = history
        reports += history
    reports += random.sample(reports, len(reports) // 10)
    random.shuffle(reports)
    work.messages = _mixed(random, creates, _messages(names, random, reports))
    return work


def create(names: TopologyNames, task_id: UUID, prompt: str) -> OutgoingMessage:
    """Return a create of this task, without reply_to."""
    return command(names, "task.create", task_id, owner_id=str(OWNER), template_version_id=str(VERSION), input=prompt)


def command(names: TopologyNames, kind: str, task_id: UUID, **fields: Any) -> OutgoingMessage:
    """Return a command for this task."""
    body = {"type": kind, "command_id": str(uuid4()), "task_id": str(task_id), "actor_id": str(OWNER), **fields}
    return OutgoingMessage(names.commands, kind, json.dumps(body).encode(), mandatory=True)


def message(names: TopologyNames, body: bytes, routing_key: str = "any") -> OutgoingMessage:
    """Return a message for the exchange of reports."""
    return OutgoingMessage(names.reports, routing_key, body, mandatory=True)


def encode(reports: list[Report]) -> bytes:
    """Encode reports as a message body: one as an object, several as an array."""
    bodies = [histories.report_fields(report) for report in reports]
    return json.dumps(bodies[0] if len(bodies) == 1 else bodies).encode()


def regular(task_id: UUID, statuses: int) -> list[Report]:
    """Return the reports of an agent that starts and works in the first build, with rising seqs."""
    agent = UUID(int=task_id.int ^ 1)
    common: dict[str, Any] = {"task_id": task_id, "build_number": 1, "agent_id": agent}
    build: dict[str, Any] = {"task_id": task_id, "build_number": 1, "transition": Transition.START}
    app = App(UUID(int=task_id.int ^ 2), "web", None, Health.INITIALIZING)
    workspace = Workspace(UUID(int=task_id.int ^ 3), "workspace")
    reports: list[Report] = [
        WorkspaceBuild(**build, seq=1, job_status=JobStatus.RUNNING, workspace=workspace),
        WorkspaceBuild(**build, seq=2, job_status=JobStatus.SUCCEEDED, agent_id=agent, app=app),
        AgentLifecycle(**common, seq=3, lifecycle=Lifecycle.STARTING),
        AgentLifecycle(**common, seq=4, lifecycle=Lifecycle.READY),
        AppHealth(**common, seq=5, health=Health.HEALTHY),
    ]
    for step in range(statuses):
        state = AgentState.IDLE if step == statuses - 1 else AgentState.WORKING
        reports.append(AppStatus(**common, seq=10 + step, state=state, message=f"step {step}"))
        reports.append(AgentHeartbeat(**common, seq=10 + step))
    return reports + log(task_id, statuses)


def log(task_id: UUID, entries: int) -> list[Report]:
    """Return one report per log entry, so that the loss of any single one shows."""
    return [
        TaskLog(
            task_id=task_id,
            build_number=1,
            seq=100 + number,
            entries=(LogEntry(number, LogSource.OUTPUT, f"line {number}", histories.NOON),),
        )
        for number in range(entries)
    ]


def _messages(names: TopologyNames, random: Random, reports: list[Report]) -> list[OutgoingMessage]:
    """Return messages with the reports in order, one or a few in each."""
    messages: list[OutgoingMessage] = []
    while reports:
        size = random.choice((1, 1, 1, random.randrange(2, MAX_ARRAY_LENGTH)))
        messages.append(message(names, encode(reports[:size]), str(reports[0].task_id)))
        reports = reports[size:]
    return messages


def _mixed(random: Random, creates: list[OutgoingMessage], messages: list[OutgoingMessage]) -> list[OutgoingMessage]:
    """Insert the creates at random positions in the first half of the messages."""
    mixed = list(messages)
    for create_message in creates:
        mixed.insert(random.randrange(1 + len(mixed) // 2), create_message)
    return mixed
