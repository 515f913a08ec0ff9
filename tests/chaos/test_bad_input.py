from __future__ import annotations

import json
from random import Random
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import pytest

from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.publish import OutgoingMessage
from taskherd.domain.reports import AgentState, AppStatus, JobStatus, Transition, WorkspaceBuild
from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.reports import decode_reports
from tests.broker import raw
from tests.chaos import workload
from tests.chaos.figures import Figures
from tests.chaos.workload import Workload
from tests.harness import histories
from tests.harness.chaos import ChaosHarness, WorkerProcess, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

MEBIBYTE = 1024 * 1024
KEPT = 64 * 1024
TASK = str(UUID(int=5))
BEAT: dict[str, Any] = {"type": "agent.heartbeat", "task_id": TASK, "seq": 1}
BODIES: list[tuple[str, bytes]] = [
    ("not_json", b""),
    ("not_json", b"{"),
    ("not_json", b"\xff\xfe{}"),
    ("not_json", b'{"type":"agent.heartbeat","task_id":"\xc3\x28"}'),
    (
        "not_json",
        b'{"type":"agent.heartbeat","task_id":"\xed\xa0\x80"}',
    ),  # a lone surrogate, encoded as if it were none
    ("not_json", b'{"type":"agent.heartbeat","seq":NaN}'),
    ("not_json", b'{"type":"agent.heartbeat","x":' + b"[" * 20_000 + b"]" * 20_000 + b"}"),
    ("not_json", b"[" * 20_000),
    ("invalid", b"null"),
    ("invalid", b"3"),
    ("invalid", b'"report"'),
    ("invalid", b"{}"),
    *[
        (reason, json.dumps({**BEAT, **wrong}).encode())
        for reason, wrong in (
            ("unknown_type", {"type": "agent.sneezed"}),
            ("unknown_type", {"type": 7}),
            ("invalid", {"task_id": "seven"}),
            ("invalid", {"task_id": None}),
            ("invalid", {"seq": -1}),
            ("invalid", {"seq": 2**53}),
            ("invalid", {"seq": 2**63}),
            ("invalid", {"seq": 10**30}),
            ("invalid", {"build_number": 2**63}),
            ("invalid", {"task_id": "\ud800"}),
            ("invalid", {"task_id": TASK + "\x00"}),
            ("invalid", {"seq": "1"}),
            ("invalid", {"seq": 1.5}),
            ("invalid", {"build_number": 0}),
            ("invalid", {"build_number": 2**31}),
            ("invalid", {"observed_at": "2026-03-01T12:00:00"}),
            ("invalid", {"observed_at": "9999-12-31T23:59:59-14:00"}),
            ("invalid", {"type": "app.status", "state": "asleep"}),
            ("invalid", {"type": "task.log", "entries": [{"id": -1}]}),
            ("invalid", {"type": "task.log", "entries": [{}] * 1001}),
        )
    ],
    ("too_many", json.dumps([BEAT] * 1001).encode()),
    ("too_large", b"x" * (10 * MEBIBYTE)),
    ("too_large", json.dumps({**BEAT, "padding": "x" * MEBIBYTE}).encode()),
]
PROPERTIES = {
    "timestamp in microseconds": raw.timestamp(1_760_000_000_000_000),
    "timestamp before 1970": raw.timestamp(2**64 - 5),
    "app_id in Latin-1": raw.app_id(b"caf\xe9"),
    "table key in Latin-1": raw.headers(b"\x02\xe9\xe9t\x01"),
    "timestamp in a table": raw.headers(b"\x01aT\xff\xff\xff\xff\xff\xff\xff\xff"),
    "arrays 2,000 deep": raw.headers(raw.nested_arrays(2000)),
}


async def begun(stage: ChaosHarness, tasks: int = 8) -> tuple[WorkerProcess, Workload, list[OutgoingMessage]]:
    """A ready worker whose tasks exist, and the reports that are still to be sent."""
    work = workload.build(stage.names, Random(3), tasks=tasks, nasty=False)
    work.doomed.clear()
    stage.enter(work)
    worker = await stage.start()
    creates = [one for one in work.messages if one.exchange == stage.names.commands]
    await stage.send(creates)
    await until(stage.ledger.rows, lambda rows: len(rows.tasks) == tasks)
    return worker, work, [one for one in work.messages if one not in creates]


async def unharmed(stage: ChaosHarness, work: Workload, worker: WorkerProcess) -> None:
    """Every good report is applied, every bad one dead-lettered, on the same connections in the same process."""
    await stage.settled()
    assert worker.running
    assert await worker.metric("taskherd_reconnects_total") == 0
    assert await worker.metric("taskherd_redeliveries_total") == 0
    await stage.finished(work, worker)


def mixed(dice: Random, good: list[OutgoingMessage], bad: list[OutgoingMessage]) -> list[OutgoingMessage]:
    """Both, in any order."""
    both = [*good, *bad]
    dice.shuffle(both)
    return both


async def test_bad_bodies_are_buried_and_their_neighbours_applied(stage: ChaosHarness) -> None:
    """Whatever the body, the rest of its batch is applied, and it is dead-lettered with the reason that fits."""
    worker, work, good = await begun(stage)
    bad = [workload.message(stage.names, body) for _, body in BODIES]
    stage.ledger.bad += [(reason, body[:KEPT] if reason == "too_large" else body) for reason, body in BODIES]
    await stage.send(mixed(Random(4), good, bad))
    await unharmed(stage, work, worker)
    lengths = sorted(letter.length or 0 for letter in stage.ledger.letters if letter.reason == "too_large")
    assert lengths == sorted(len(body) for reason, body in BODIES if reason == "too_large")


async def test_bad_elements_are_cut_out_of_their_array(stage: ChaosHarness) -> None:
    """Of an array the bad elements are buried, each with its place, and the others applied; an empty one is no harm."""
    worker, work, good = await begun(stage)
    task_id = next(iter(work.reports))
    told = [AppStatus(task_id=task_id, build_number=1, seq=500 + n, state=AgentState.WORKING) for n in range(3)]
    refused = WorkspaceBuild(
        task_id=task_id, build_number=1, seq=900, transition=Transition.STOP, job_status=JobStatus.PENDING
    )
    work.reports[task_id] += [*told, refused]
    stranger = {"type": "task.input", "task_id": str(task_id), "input_id": str(uuid4()), "outcome": "delivered"}
    parts = [histories.body(told[0]), {"type": "?"}, histories.body(told[1]), stranger, 7, histories.body(refused)]
    array = [json.dumps(part).encode() for part in [*parts, histories.body(told[2])]]
    stage.ledger.bad += [("unknown_type", array[1]), ("unknown_input", array[3]), ("invalid", array[4])]
    await stage.send([*good, workload.message(stage.names, b"[" + b", ".join(array) + b"]")])
    await stage.send([workload.message(stage.names, b"[]")])
    await unharmed(stage, work, worker)
    places = {letter.reason: letter.place for letter in stage.ledger.letters}
    assert places == {"unknown_type": 1, "unknown_input": 3, "invalid": 4, "build_conflict": 5}


async def test_texts_that_a_database_cannot_hold_are_cleaned(stage: ChaosHarness) -> None:
    """NUL, lone surrogates and control characters are taken out of a text, and the report is applied."""
    worker, work, good = await begun(stage)
    dirty = r'"a\u0000b\ud800c\u0007d\ne"'
    messages = []
    for place, task_id in enumerate(work.reports):
        report = AppStatus(task_id=task_id, build_number=1, seq=900, state=AgentState.IDLE, message=f"{place}abcd\ne")
        work.reports[task_id].append(report)
        body = json.dumps({**histories.body(report), "message": "?"}).replace('"?"', dirty.replace('"a', f'"{place}a'))
        messages.append(workload.message(stage.names, body.encode()))
    await stage.send(mixed(Random(5), good, messages))
    await unharmed(stage, work, worker)


async def test_properties_that_no_library_decodes_hurt_nobody(stage: ChaosHarness) -> None:
    """A message with undecodable AMQP properties is judged by its body: a good one is applied, a bad one buried."""
    worker, work, good = await begun(stage)
    task_id = next(iter(work.reports))
    link = SupervisedConnection(stage.ledger.amqp_url, "chaos sends raw frames")
    link.start()
    channel = await link.channel()
    half = len(good) // 2
    await stage.send(good[:half])
    for place, properties in enumerate(PROPERTIES.values()):
        report = AppStatus(task_id=task_id, build_number=1, seq=900 + place, state=AgentState.WORKING)
        work.reports[task_id].append(report)
        await raw.publish(channel, stage.names.reports, b"raw", workload.said([report]), properties)
        rubbish = json.dumps({"rubbish": place}).encode()
        stage.ledger.bad.append(("invalid", rubbish))
        await raw.publish(channel, stage.names.reports, b"\xff\xfe", rubbish, properties)
    await channel.close()
    await stage.send(good[half:])
    await unharmed(stage, work, worker)
    await link.close()


async def test_a_time_far_ahead_freezes_nothing(stage: ChaosHarness) -> None:
    """A report dated in the year 9999 is outdone by the next one of now: the agent's clock orders nothing by itself."""
    worker, work, _ = await begun(stage, tasks=1)
    (task_id,) = work.reports
    common = {"type": "app.status", "task_id": str(task_id)}
    for said in ({"state": "working", "observed_at": "9999-12-31T23:59:59Z"}, {"state": "idle"}):
        await stage.send([workload.message(stage.names, json.dumps({**common, **said}).encode())])

    async def state() -> object:
        return ((await stage.ledger.rows()).tasks[task_id].document["current_state"] or {}).get("state")

    await until(state, lambda shown: shown == "idle")
    await stage.stop_worker(worker)


async def test_bad_commands_are_answered_and_buried(stage: ChaosHarness) -> None:
    """A command that can't be read is answered where it says how, and buried, as is one refused with nobody to tell."""
    worker, work, good = await begun(stage, tasks=1)
    names = stage.names
    stranger = workload.command(names, "task.pause", uuid4())
    unreadable = [b"{", b"[]", b'{"type":"task.explode"}', b'{"type":"task.delete","task_id":1}']
    reasons = ["not_json", "invalid", "unknown_type", "invalid"]
    stage.ledger.bad += [("command_refused", stranger.body), *zip(reasons, unreadable, strict=True)]
    async with await aio_pika.connect(stage.ledger.amqp_url, timeout=10) as connection:
        replies = await (await connection.channel()).declare_queue(exclusive=True)
        asking = [
            OutgoingMessage(names.commands, "?", body, mandatory=True, reply_to=replies.name, correlation_id=str(place))
            for place, body in enumerate(unreadable)
        ]
        await stage.send([stranger, *asking, *good])
        await stage.settled()
        answers = {}
        while (message := await replies.get(no_ack=True, fail=False, timeout=10)) is not None:
            answers[message.correlation_id] = json.loads(message.body)["error"]["status"]
    assert answers == {str(place): 400 for place in range(len(unreadable))}
    await unharmed(stage, work, worker)


@pytest.mark.parametrize("many", [300, pytest.param(10_000, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])])
async def test_malformed_inputs_are_buried_one_and_all(stage: ChaosHarness, figures: Figures, many: int) -> None:
    """Garbled, oversized, deep and wrong bodies and undecodable properties: none hurts a neighbour, none is lost."""
    dice = Random(many)
    worker, work, good = await begun(stage)
    bodies = BODIES * max(1, many // 1000)
    strange = [("invalid", json.dumps({"rubbish": place}).encode()) for place in range(many // 10)]
    garbled = [_garbage(dice) for _ in range(many - len(bodies) - len(strange))]
    for reason, body in (*bodies, *strange, *garbled):
        stage.ledger.bad.append((reason, body[:KEPT] if reason == "too_large" else body))
    bad = [workload.message(stage.names, body) for _, body in (*bodies, *garbled)]
    pieces = Workload(messages=mixed(dice, good, bad)).parts(len(strange))
    link = SupervisedConnection(stage.ledger.amqp_url, "chaos sends raw frames")
    link.start()
    channel = await link.channel()
    for piece, (_, body) in zip(pieces, strange, strict=True):
        properties = dice.choice(list(PROPERTIES.values()))
        await raw.publish(channel, stage.names.reports, b"\xff\xfe", body, properties)
        await stage.send(piece, within=300)
    stage.sent += len(strange)

    async def buried() -> float:
        return await worker.metric("taskherd_dead_lettered_total")

    assert await until(buried, lambda count: count >= many, within=300) == many
    await channel.close()
    await link.close()
    await unharmed(stage, work, worker)
    told = (
        "garbled, oversized, deep, of wrong types, with undecodable properties; all in the dead letters, no reconnect"
    )
    await figures.of(stage, "malformed inputs among good ones", faults=many, note=told)


def _garbage(dice: Random) -> tuple[str, bytes]:
    """A report with some bytes changed, so that it is none any more, and the reason that fits."""
    while True:
        body = _garbled(dice, workload.said([histories.report(dice)]))
        judged = decode_reports(body, histories.NOON)
        if len(judged) == 1 and isinstance(judged[0], InvalidMessage):
            return judged[0].reason.value, judged[0].body


def _garbled(dice: Random, body: bytes) -> bytes:
    """The body with some bytes replaced, left out or put in."""
    garbled = bytearray(body)
    for _ in range(dice.randrange(1, 4)):
        place = dice.randrange(len(garbled))
        match dice.randrange(3):
            case 0:
                garbled[place] = dice.randrange(256)
            case 1:
                del garbled[place]
            case _:
                garbled.insert(place, dice.randrange(256))
    return bytes(garbled)
