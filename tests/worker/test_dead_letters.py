"""Dead letters that a worker writes."""

from __future__ import annotations

import json
import struct
import uuid
from datetime import datetime, timedelta

import aiormq
import pytest

from taskherd.clock import Clock
from taskherd.messages.limits import MAX_BODY_BYTES, TRUNCATED_BYTES
from tests.broker import raw
from tests.harness.worker import make_command, make_report
from tests.worker.conftest import StartWorker

AHEAD = timedelta(hours=1)


async def test_dead_letters_have_the_time_of_the_worker_clock(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of invalid reports and of refused commands alike; the clock of the machine does not matter."""
    now = Clock.now
    monkeypatch.setattr(Clock, "now", lambda clock: now(clock) + AHEAD)
    async with start_worker() as harness:
        before = await harness.database.fetchval("SELECT clock_timestamp()")
        await harness.report(make_report("app.status", uuid.uuid4(), state="dancing", message="Invalid"))
        await harness.report(raw=b"not JSON")
        await harness.post_command(make_command("task.delete", uuid.uuid4()))
        await harness.until(lambda: len(harness.dead_letters) == 3)
        after = await harness.database.fetchval("SELECT clock_timestamp()")
    assert sorted(harness.reasons()) == ["command_refused", "invalid", "not_json"]
    for letter in harness.dead_letters:
        time = datetime.fromisoformat(str(letter.headers["x-taskherd-time"])) - AHEAD
        assert before - timedelta(seconds=5) < time < after + timedelta(seconds=5)


async def test_data_of_many_levels_are_a_dead_letter(start_worker: StartWorker) -> None:
    """Data deeper than any stack become a dead letter by themselves, and the worker goes on."""
    async with start_worker() as harness:
        task_id = await harness.create()
        entry = {"id": 0, "type": "output", "content": "Here", "time": "2026-01-01T10:00:00Z"}
        deep = {**entry, "id": 1, "data": {"deep": "DEEP"}}
        body = json.dumps(make_report("task.log", task_id, entries=[deep]))
        await harness.report(raw=body.replace('"DEEP"', "[" * 5_000 + "]" * 5_000).encode())
        await harness.until(lambda: harness.reasons() == ["invalid"])
        await harness.report(make_report("task.log", task_id, entries=[entry]))
        await harness.until_row("SELECT count(*) FROM task_logs WHERE task_id = $1", task_id, is_=1)


async def test_headers_of_many_levels_are_left_out(start_worker: StartWorker, amqp_url: str) -> None:
    """However many they have, also if they can just be decoded: no stack decides, and the worker goes on."""
    depths = [16, 17, *range(440, 501)]
    innermost = b"S" + struct.pack(">I", 1) + b"x"
    async with start_worker() as harness, await aiormq.connect(amqp_url) as connection:
        channel = await connection.channel(publisher_confirms=False)
        assert isinstance(channel, aiormq.Channel)
        for depth in depths:
            properties = raw.headers(raw.nested_arrays(depth, innermost))
            await raw.publish(channel, f"{harness.prefix}.reports", b"any", str(depth).encode(), properties)
        await channel.close()
        await harness.until(lambda: len(harness.dead_letters) == len(depths))
        task_id = await harness.make_active()
    assert {letter.body for letter in harness.dead_letters} == {str(depth).encode() for depth in depths}
    assert [letter.body for letter in harness.dead_letters if "n" in letter.headers] == [b"16"]
    assert harness.metric("taskherd_dead_lettered_total") == len(depths)
    assert harness.document(task_id)["status"] == "active"


@pytest.mark.parametrize("sender_checked", [True, False])
async def test_of_a_body_that_is_too_large_the_beginning_is_kept(
    start_worker: StartWorker, *, sender_checked: bool
) -> None:
    """In each queue, with its length; also if it was not read because of its sender. A command is told so."""
    body = json.dumps(make_report("agent.heartbeat", uuid.uuid4(), padding="x" * 3 * MAX_BODY_BYTES)).encode()
    settings = {"report_senders": "nobody=*", "command_senders": "nobody"} if sender_checked else {}
    reason = "untrusted_sender" if sender_checked else "too_large"
    async with start_worker(**settings) as harness:
        await harness.report(raw=body)
        command = await harness.send(body)
        claim = await harness.ask(body)
        await harness.until(lambda: len(harness.dead_letters) == 3)
    assert harness.reasons() == [reason] * 3
    for letter in harness.dead_letters:
        assert (letter.body, letter.headers["x-taskherd-length"]) == (body[:TRUNCATED_BYTES], len(body))
    assert command["ok"] is claim["ok"] is False
