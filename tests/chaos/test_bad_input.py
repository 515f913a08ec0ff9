from __future__ import annotations

import json
from random import Random
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import pytest

from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.publisher import OutgoingMessage
from taskherd.domain.reports import AgentState, AppStatus, JobStatus, Transition, WorkspaceBuild
from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.reports import decode_reports
from tests.broker import raw
from tests.chaos import workload
from tests.chaos.figures import Figures
from tests.chaos.workload import ChaosWorkload
from tests.harness import histories
from tests.harness.chaos import ChaosHarness, WorkerProcess, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

MEBIBYTE = 1024 * 1024
DEAD_LETTER_BYTES = 64 * 1024
TASK = str(UUID(int=5))
HEARTBEAT: dict[str, Any] = {"type": "agent.heartbeat", "task_id": TASK, "seq": 1}
BODIES: list[tuple[str, bytes]] = [
    ("not_json", b""),
    ("not_json", b"{"),
    ("not_json", b"\xff\xfe{}"),
    ("not_json", b'{"type":"agent.heartbeat","task_id":"\xc3\x28"}'),
    (
        "not_json",
        b'{"type":"agent.heartbeat","task_id":"\xed\xa0\x80"}',
    ),  # a lone surrogate, in UTF-8
    ("not_json", b'{"type":"agent.heartbeat","seq":NaN}'),
    ("not_json", b'{"type":"agent.heartbeat","x":' + b"[" * 20_000 + b"]" * 20_000 + b"}"),
    ("not_json", b"[" * 20_000),
    ("invalid", b"null"),
    ("invalid", b"3"),
    ("invalid", b'"report"'),
    ("invalid", b"{}"),
    *[
        (reason, json.dumps({**HEARTBEAT, **wrong}).encode())
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
    ("too_many", json.dumps([HEARTBEAT] * 1001).encode()),
    ("too_large", b"x" * (10 * MEBIBYTE)),
    ("too_large", json.dumps({**HEARTBEAT, "padding": "x" * MEBIBYTE}).encode()),
]
PROPERTIES = {
    "timestamp in microseconds": raw.timestamp(1_760_000_000_000_000),
    "timestamp before 1970": raw.timestamp(2**64 - 5),
    "app_id in Latin-1": raw.app_id(b"caf\xe9"),
    "table key in Latin-1": raw.headers(b"\x02\xe9\xe9t\x01"),
    "timestamp in a table": raw.headers(b"\x01aT\xff\xff\xff\xff\xff\xff\xff\xff"),
    "arrays 2,000 deep": raw.headers(raw.nested_arrays(2000)),
}


async def start_with_tasks(
    harness: ChaosHarness, tasks: int = 8
) -> tuple[WorkerProcess, ChaosWorkload, list[OutgoingMessage]]:
    """Start a worker and create tasks; return it with the workload and the reports that are still to be sent."""
    work = workload.build(harness.names, Random(3), tasks=tasks, adversarial=False)
    work.to_delete.clear()
    harness.add_to_ledger(work)
    worker = await harness.start()
    creates = [message for message in work.messages if message.exchange == harness.names.commands]
    await harness.send(creates)
    await until(harness.ledger.rows, lambda rows: len(rows.tasks) == tasks)
    return worker, work, [message for message in work.messages if message not in creates]


async def verify_unaffected(harness: ChaosHarness, work: ChaosWorkload, worker: WorkerProcess) -> None:
    """Check that valid reports are applied and invalid ones dead-lettered, without a reconnect or a restart."""
    await harness.until_settled()
    assert worker.running
    assert await worker.metric("taskherd_reconnects_total") == 0
    assert await worker.metric("taskherd_redeliveries_total") == 0
    await harness.finish(work, worker)


def shuffled(
    random: Random, valid_messages: list[OutgoingMessage], invalid_messages: list[OutgoingMessage]
) -> list[OutgoingMessage]:
    """Return both in random order."""
    both = [*valid_messages, *invalid_messages]
    random.shuffle(both)
    return both


async def test_invalid_bodies_are_dead_lettered_and_their_batch_is_applied(harness: ChaosHarness) -> None:
    """Every invalid body is dead-lettered with the right reason, and the other reports of its batch are applied."""
    worker, work, valid_messages = await start_with_tasks(harness)
    invalid_messages = [workload.message(harness.names, body) for _, body in BODIES]
    harness.ledger.expected_dead_letters += [
        (reason, body[:DEAD_LETTER_BYTES] if reason == "too_large" else body) for reason, body in BODIES
    ]
    await harness.send(shuffled(Random(4), valid_messages, invalid_messages))
    await verify_unaffected(harness, work, worker)
    lengths = sorted(letter.length or 0 for letter in harness.ledger.dead_letters if letter.reason == "too_large")
    assert lengths == sorted(len(body) for reason, body in BODIES if reason == "too_large")


async def test_invalid_elements_are_dead_lettered_separately(harness: ChaosHarness) -> None:
    """Invalid elements of an array are dead-lettered with their index, the others are applied; it may also be empty."""
    worker, work, valid_messages = await start_with_tasks(harness)
    task_id = next(iter(work.reports))
    statuses = [AppStatus(task_id=task_id, build_number=1, seq=500 + n, state=AgentState.WORKING) for n in range(3)]
    conflict = WorkspaceBuild(
        task_id=task_id, build_number=1, seq=900, transition=Transition.STOP, job_status=JobStatus.PENDING
    )
    work.reports[task_id] += [*statuses, conflict]
    unknown_input = {"type": "task.input", "task_id": str(task_id), "input_id": str(uuid4()), "outcome": "delivered"}
    first, second, third = map(histories.report_fields, statuses)
    elements = [first, {"type": "?"}, second, unknown_input, 7, histories.report_fields(conflict), third]
    array = [json.dumps(element).encode() for element in elements]
    harness.ledger.expected_dead_letters += [
        ("unknown_type", array[1]),
        ("unknown_input", array[3]),
        ("invalid", array[4]),
    ]
    await harness.send([*valid_messages, workload.message(harness.names, b"[" + b", ".join(array) + b"]")])
    await harness.send([workload.message(harness.names, b"[]")])
    await verify_unaffected(harness, work, worker)
    indexes = {letter.reason: letter.index for letter in harness.ledger.dead_letters}
    assert indexes == {"unknown_type": 1, "unknown_input": 3, "invalid": 4, "build_conflict": 5}


async def test_texts_that_the_database_cannot_store_are_sanitized(harness: ChaosHarness) -> None:
    """NUL, lone surrogates and control characters are removed from a text, and the report is applied."""
    worker, work, valid_messages = await start_with_tasks(harness)
    dirty = r'"a\u0000b\ud800c\u0007d\ne"'
    messages = []
    for number, task_id in enumerate(work.reports):
        report = AppStatus(task_id=task_id, build_number=1, seq=900, state=AgentState.IDLE, message=f"{number}abcd\ne")
        work.reports[task_id].append(report)
        body = json.dumps({**histories.report_fields(report), "message": "?"}).replace(
            '"?"', dirty.replace('"a', f'"{number}a')
        )
        messages.append(workload.message(harness.names, body.encode()))
    await harness.send(shuffled(Random(5), valid_messages, messages))
    await verify_unaffected(harness, work, worker)


async def test_undecodable_properties_do_no_harm(harness: ChaosHarness) -> None:
    """A message with undecodable AMQP properties is decided by its body: applied if valid, otherwise dead-lettered."""
    worker, work, valid_messages = await start_with_tasks(harness)
    task_id = next(iter(work.reports))
    connection = SupervisedConnection(harness.ledger.amqp_url, "chaos sends raw frames")
    connection.start()
    channel = await connection.channel()
    half = len(valid_messages) // 2
    await harness.send(valid_messages[:half])
    for number, properties in enumerate(PROPERTIES.values()):
        report = AppStatus(task_id=task_id, build_number=1, seq=900 + number, state=AgentState.WORKING)
        work.reports[task_id].append(report)
        await raw.publish(channel, harness.names.reports, b"raw", workload.encode([report]), properties)
        invalid = json.dumps({"invalid": number}).encode()
        harness.ledger.expected_dead_letters.append(("invalid", invalid))
        await raw.publish(channel, harness.names.reports, b"\xff\xfe", invalid, properties)
    await channel.close()
    await harness.send(valid_messages[half:])
    await verify_unaffected(harness, work, worker)
    await connection.close()


async def test_a_time_far_in_the_future_does_not_win(harness: ChaosHarness) -> None:
    """A report dated in the year 9999 is superseded by the next one: the agent's clock alone does not order reports."""
    worker, work, _ = await start_with_tasks(harness, tasks=1)
    (task_id,) = work.reports
    common = {"type": "app.status", "task_id": str(task_id)}
    for fields in ({"state": "working", "observed_at": "9999-12-31T23:59:59Z"}, {"state": "idle"}):
        await harness.send([workload.message(harness.names, json.dumps({**common, **fields}).encode())])

    async def state() -> object:
        return ((await harness.ledger.rows()).tasks[task_id].document["current_state"] or {}).get("state")

    await until(state, lambda value: value == "idle")
    await harness.stop_worker(worker)


async def test_invalid_commands_get_an_error_and_are_dead_lettered(harness: ChaosHarness) -> None:
    """An undecodable command gets a reply and is dead-lettered, as is a refused command without reply_to."""
    worker, work, valid_messages = await start_with_tasks(harness, tasks=1)
    names = harness.names
    refused = workload.command(names, "task.pause", uuid4())
    undecodable = [b"{", b"[]", b'{"type":"task.explode"}', b'{"type":"task.delete","task_id":1}']
    reasons = ["not_json", "invalid", "unknown_type", "invalid"]
    harness.ledger.expected_dead_letters += [("command_refused", refused.body), *zip(reasons, undecodable, strict=True)]
    async with await aio_pika.connect(harness.ledger.amqp_url, timeout=10) as connection:
        replies = await (await connection.channel()).declare_queue(exclusive=True)
        requests = [
            OutgoingMessage(
                names.commands, "?", body, mandatory=True, reply_to=replies.name, correlation_id=str(number)
            )
            for number, body in enumerate(undecodable)
        ]
        await harness.send([refused, *requests, *valid_messages])
        await harness.until_settled()
        statuses = {}
        while (message := await replies.get(no_ack=True, fail=False, timeout=10)) is not None:
            statuses[message.correlation_id] = json.loads(message.body)["error"]["status"]
    assert statuses == {str(number): 400 for number in range(len(undecodable))}
    await verify_unaffected(harness, work, worker)


@pytest.mark.parametrize("total", [300, pytest.param(10_000, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])])
async def test_all_malformed_inputs_are_dead_lettered(harness: ChaosHarness, figures: Figures, total: int) -> None:
    """Corrupted, oversized, nested and wrong bodies and undecodable properties become dead letters, no others do."""
    random = Random(total)
    worker, work, valid_messages = await start_with_tasks(harness)
    bodies = BODIES * max(1, total // 1000)
    unexpected = [("invalid", json.dumps({"invalid": number}).encode()) for number in range(total // 10)]
    corrupted = [_invalid_report(random) for _ in range(total - len(bodies) - len(unexpected))]
    for reason, body in (*bodies, *unexpected, *corrupted):
        harness.ledger.expected_dead_letters.append(
            (reason, body[:DEAD_LETTER_BYTES] if reason == "too_large" else body)
        )
    invalid_messages = [workload.message(harness.names, body) for _, body in (*bodies, *corrupted)]
    pieces = ChaosWorkload(messages=shuffled(random, valid_messages, invalid_messages)).split(len(unexpected))
    connection = SupervisedConnection(harness.ledger.amqp_url, "chaos sends raw frames")
    connection.start()
    channel = await connection.channel()
    for piece, (_, body) in zip(pieces, unexpected, strict=True):
        properties = random.choice(list(PROPERTIES.values()))
        await raw.publish(channel, harness.names.reports, b"\xff\xfe", body, properties)
        await harness.send(piece, within=300)
    harness.sent += len(unexpected)

    async def dead_lettered() -> float:
        return await worker.metric("taskherd_dead_lettered_total")

    assert await until(dead_lettered, lambda count: count >= total, within=300) == total
    await channel.close()
    await connection.close()
    await verify_unaffected(harness, work, worker)
    note = "corrupted, oversized, deeply nested, wrong types, undecodable properties; all dead-lettered, no reconnect"
    await figures.record_run(harness, "malformed inputs among valid ones", faults=total, note=note)


def _invalid_report(random: Random) -> tuple[str, bytes]:
    """Corrupt reports until one is invalid; return the reason and the body."""
    while True:
        body = _corrupted(random, workload.encode([histories.report(random)]))
        decoded = decode_reports(body, histories.NOON)
        if len(decoded) == 1 and isinstance(decoded[0], InvalidMessage):
            return decoded[0].reason.value, decoded[0].body


def _corrupted(random: Random, body: bytes) -> bytes:
    """Return the body with some bytes replaced, removed or inserted."""
    corrupted = bytearray(body)
    for _ in range(random.randrange(1, 4)):
        index = random.randrange(len(corrupted))
        match random.randrange(3):
            case 0:
                corrupted[index] = random.randrange(256)
            case 1:
                del corrupted[index]
            case _:
                corrupted.insert(index, random.randrange(256))
    return bytes(corrupted)
