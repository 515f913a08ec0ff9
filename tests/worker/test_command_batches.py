"""Commands that wait are executed together, each is judged by itself, and no actor waits for another's thousand."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from taskherd.backoff import Backoff
from taskherd.broker.consumer import Consumer
from taskherd.broker.delivery import Delivery
from taskherd.worker import bisection, command_consumer
from taskherd.worker.command_order import MAX_OF_ACTOR
from tests.harness.worker import ALICE, ORGANIZATION, TIMEOUT, VERSION, WorkerHarness, make_command, running_worker

BOB = uuid.UUID("00000000-0000-4000-8000-0000000000a2")
BUGGY = "A prompt too many"
SECOND_OWNER = f"""
INSERT INTO users (id, username, name, email, avatar_url) VALUES ('{BOB}', 'bob', 'Bob', 'bob@example.com', '');
INSERT INTO memberships (user_id, organization_id, role) VALUES ('{BOB}', '{ORGANIZATION}', 'member');
"""


def create(owner: uuid.UUID, prompt: str, **fields: Any) -> dict[str, Any]:
    """Return a create by ``owner``."""
    task_id = uuid.uuid4()
    wanted = {"actor_id": str(owner), "owner_id": str(owner), "template_version_id": str(VERSION), "input": prompt}
    return {**make_command("task.create", task_id), **wanted, **fields}


async def replies_of(futures: list[asyncio.Future[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Wait for all replies."""
    async with asyncio.timeout(TIMEOUT):
        return await asyncio.gather(*futures)


def receive_together(monkeypatch: pytest.MonkeyPatch, queue: str, count: int) -> None:
    """Let the first batch of a queue have at least so many messages, which the broker may deliver one by one."""
    next_batch = Consumer.next_batch
    first: list[Delivery] = []

    async def together(self: Consumer, limit: int, wait: float, enough: int | None = None) -> list[Delivery]:
        batch = await next_batch(self, limit, wait, enough)
        if not first and batch and batch[0].queue.endswith(queue):
            first.extend(batch)
            while len(batch) < count and (more := await next_batch(self, limit, wait, enough)):
                batch += more
        return batch

    monkeypatch.setattr(Consumer, "next_batch", together)


async def test_an_actor_with_one_command_does_not_wait_for_anothers_thousand(external: WorkerHarness) -> None:
    """Bob's create, sent after a thousand of Alice's, is answered before most of hers."""
    await external.database.execute(SECOND_OWNER)
    first = [await external.post(create(ALICE, f"Step {number} of a thousand")) for number in range(1_000)]
    answered: list[str] = []
    for future in first:
        future.add_done_callback(lambda _: answered.append("alice"))
    bob = await external.post(create(BOB, "One small thing"))
    bob.add_done_callback(lambda _: answered.append("bob"))
    blocked = await external.block_writes("command_log")
    async with running_worker(external):
        await external.until_delivered("commands")
        await blocked.rollback()
        replies = await replies_of([*first, bob])
    assert all(reply["ok"] for reply in replies)
    assert answered.index("bob") < 500


async def test_a_batch_with_a_command_of_another_actor_is_small(external: WorkerHarness) -> None:
    """The transaction that has Bob's create has few of Alice's, though hundreds wait; all have the time of theirs."""
    await external.database.execute(SECOND_OWNER)
    futures = [await external.post(create(ALICE, f"Step {number} of many")) for number in range(300)]
    small = create(BOB, "One small thing")
    futures.append(await external.post(small))
    async with running_worker(external):
        replies = await replies_of(futures)
    assert all(reply["ok"] for reply in replies)
    times = {row["command_id"]: row["created_at"] for row in await external.database.fetch("TABLE command_log")}
    together = list(times.values()).count(times[uuid.UUID(small["command_id"])])
    assert 1 <= together <= MAX_OF_ACTOR + 1


async def test_an_actor_with_many_commands_leaves_a_batch_for_others(
    external: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While few of Alice's hundreds are executed, those of others are in the next batch, and none of hers."""
    await external.database.execute(SECOND_OWNER)
    futures = [await external.post(create(ALICE, f"Step {number} of many")) for number in range(300)]
    futures.append(await external.post(create(BOB, "One small thing")))
    receive_together(monkeypatch, "commands", len(futures))
    blocked = await external.block_writes("command_log")
    second = create(BOB, "Another small thing")
    async with running_worker(external):
        await external.until_delivered("commands")
        futures.append(await external.post(second))
        await external.until_delivered("commands")
        await blocked.rollback()
        assert all(reply["ok"] for reply in await replies_of(futures))
    rows = await external.database.fetch("TABLE command_log")
    time = next(row["created_at"] for row in rows if row["command_id"] == uuid.UUID(second["command_id"]))
    before = [row for row in rows if row["created_at"] <= time]
    assert len(before) <= MAX_OF_ACTOR + 2


async def test_an_actor_whose_command_fails_by_a_bug_has_others_executed(
    external: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was executed of the batch with that command does not count, while another actor sends commands too."""
    await external.database.execute(SECOND_OWNER)
    await fail_by_a_bug(external, monkeypatch)
    await external.post(create(ALICE, BUGGY))
    good = [await external.post(create(ALICE, f"Good task {number}")) for number in range(MAX_OF_ACTOR)]
    good.append(await external.post(create(BOB, "Not alone")))
    receive_together(monkeypatch, "commands", MAX_OF_ACTOR + 2)
    async with running_worker(external):
        assert all(reply["ok"] for reply in await replies_of(good))
        later = await external.post(create(ALICE, "Later"))
        while not later.done():
            bob = await external.post(create(BOB, "And another"))
            assert all(reply["ok"] for reply in await replies_of([bob]))
        assert later.result()["ok"]


async def fail_by_a_bug(external: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each create with the prompt ``BUGGY`` fail as if by a bug of ours, and be tried again an hour later."""
    monkeypatch.setattr(bisection, "BUGS", Backoff(3_600, 3_600, jitter=0))
    await external.database.execute(f"""
        CREATE FUNCTION disturb() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION USING ERRCODE = '42703'; END $$;
        CREATE TRIGGER disturb BEFORE INSERT ON task_prompts FOR EACH ROW WHEN (NEW.prompt = '{BUGGY}')
        EXECUTE FUNCTION disturb()
    """)


async def test_a_command_that_fails_by_a_bug_holds_up_no_reply(
    external: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it waits to be tried again, what was committed of its batch is answered and acknowledged."""
    await fail_by_a_bug(external, monkeypatch)
    good = [await external.post(create(ALICE, f"Good task {number}")) for number in range(30)]
    bad = await external.post(create(ALICE, BUGGY))
    async with running_worker(external):
        assert all(reply["ok"] for reply in await replies_of(good))
    async with asyncio.timeout(TIMEOUT):
        while await external.queue_counts("commands") != (1, 0):  # noqa: ASYNC110 - the broker does not notify
            await asyncio.sleep(0.05)
    assert not bad.done()
    assert not external.dead_letters


async def test_each_command_of_a_batch_is_judged_by_itself(external: WorkerHarness) -> None:
    """One that the database rejects and those that are refused cost only themselves; all others are executed once."""
    await external.database.execute("ALTER TABLE task_prompts ADD CHECK (prompt <> 'rejected')")
    creates = [create(ALICE, f"Good task {number}") for number in range(30)]
    bad = [create(ALICE, "rejected"), create(ALICE, "Bad name", name="new"), make_command("task.pause", uuid.uuid4())]
    commands = [*creates[:10], bad[0], *creates[10:20], bad[1], *creates[20:], bad[2]]
    futures = {command["command_id"]: await external.post(command) for command in commands}
    async with running_worker(external):
        await replies_of([*futures.values()])
        await external.until(lambda: external.reasons() == ["data_error"])
    assert all(futures[command["command_id"]].result()["ok"] for command in creates)
    statuses = [futures[command["command_id"]].result()["error"]["status"] for command in bad]
    assert statuses == [400, 400, 404]
    prompts = {row["prompt"] for row in await external.database.fetch("SELECT prompt FROM task_prompts")}
    assert prompts == {command["input"] for command in creates}
    for command in creates:
        task = futures[command["command_id"]].result()["task"]
        assert (task["id"], task["initial_prompt"]) == (command["task_id"], command["input"])


async def test_the_commands_for_a_task_are_executed_in_the_order_sent(external: WorkerHarness) -> None:
    """Each has a reply, a version and an event of its own, and the same command twice is executed once."""
    await external.database.execute(SECOND_OWNER)
    first = create(ALICE, "Do it")
    task_id = uuid.UUID(first["task_id"])
    delete = {**make_command("task.delete", task_id), "actor_id": str(BOB)}
    sent = [first, first, {**make_command("task.pause", task_id), "actor_id": str(BOB)}, delete, delete]
    futures = [await external.post(command) for command in sent]
    async with running_worker(external):
        created, repeated, paused, deleted, deleted_again = await replies_of(futures)
        await external.until(lambda: len(external.events_of(task_id)) == 2)
    assert created["ok"]
    assert created == repeated
    assert paused["error"]["message"] == "A workspace build is already active."
    assert deleted["ok"]
    assert deleted == deleted_again
    causes = {each["version"]: each["cause"]["id"] for each in external.events_of(task_id)}
    assert causes == {1: first["command_id"], 2: delete["command_id"]}


async def test_waiting_commands_share_transactions(external: WorkerHarness) -> None:
    """A hundred creates that wait are committed in far fewer transactions than commands."""
    futures = [await external.post(create(ALICE, f"Shared {number}")) for number in range(100)]
    blocked = await external.block_writes("command_log")
    async with running_worker(external):
        await external.until_delivered("commands")
        await blocked.rollback()
        assert all(reply["ok"] for reply in await replies_of(futures))
    transactions = await external.database.fetchval("SELECT count(DISTINCT xmin::text) FROM command_log")
    assert transactions <= 20


async def create_in_turn(external: WorkerHarness, count: int) -> None:
    """Create tasks of Alice, each after the reply to the one before."""
    for number in range(count):
        [reply] = await replies_of([await external.post(create(ALICE, f"Turn {number}"))])
        assert reply["ok"]


async def test_the_commands_of_a_few_callers_share_transactions(
    external: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four callers, each of whom waits for the reply, are soon executed together, and go on so."""
    monkeypatch.setattr(command_consumer, "MAX_GROW", 1.0)
    async with running_worker(external):
        await asyncio.gather(*(create_in_turn(external, 20) for _ in range(4)))
    transactions = await external.database.fetchval("SELECT count(DISTINCT xmin::text) FROM command_log")
    assert transactions <= 25


async def test_a_caller_does_not_wait_for_those_who_have_left(external: WorkerHarness) -> None:
    """Three of four callers send no more; the commands of the fourth take less than half a second each."""
    async with running_worker(external):
        await asyncio.gather(*(create_in_turn(external, 5) for _ in range(4)))
        began = asyncio.get_running_loop().time()
        await create_in_turn(external, 30)
        assert asyncio.get_running_loop().time() - began < 15


async def test_a_command_that_comes_alone_is_executed_at_once(external: WorkerHarness) -> None:
    """Without others it does not wait for a batch to grow: thirty in turn take less than half a second each."""
    async with running_worker(external):
        began = asyncio.get_running_loop().time()
        await create_in_turn(external, 30)
        assert asyncio.get_running_loop().time() - began < 15


async def test_what_commands_change_is_published_and_requested_at_once(external: WorkerHarness) -> None:
    """Executed alone or together: events and work requests wait for no look at what is stale or due."""
    futures = [await external.post(create(ALICE, f"Together {number}")) for number in range(5)]
    blocked = await external.block_writes("command_log")
    async with running_worker(external, relay_every=60, sweep_every=60, request_backoff_first=60):
        await external.until_delivered("commands")
        await blocked.rollback()
        created = [uuid.UUID(reply["task"]["id"]) for reply in await replies_of(futures)]
        created.append(await external.create())
        await external.until(lambda: all(map(external.document, created)))
        await external.until(lambda: all(external.requests_of(task_id, "workspace.start") for task_id in created))
        for task_id in created[:3]:
            await external.make_active(task_id)
        blocked = await external.block_writes("command_log")
        pauses = [await external.post(make_command("task.pause", task_id)) for task_id in created[:3]]
        await external.until_delivered("commands")
        await blocked.rollback()
        assert all(reply["ok"] for reply in await replies_of(pauses))
        await external.until(lambda: all(external.requests_of(task_id, "workspace.stop") for task_id in created[:3]))
