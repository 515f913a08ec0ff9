"""Messages count only if the broker vouches for a trusted sender: each attack is played with a real RabbitMQ user."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import aio_pika
import pytest
from aio_pika.exceptions import AMQPError

from taskherd.broker.command_client import CommandClient
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.publisher import Publisher
from taskherd.dev.services import Services
from taskherd.worker import work_queues
from tests.harness import fork_server
from tests.harness.runner import eventually_async
from tests.harness.worker import (
    ALICE,
    VERSION,
    WorkerHarness,
    build_report,
    external_harness,
    make_command,
    running_worker,
)

pytestmark = [pytest.mark.timeout(240)]  # rabbitmqctl starts slowly on a busy machine


def as_user(url: str, user: str, password: str) -> str:
    """Return the broker's URL for another user."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{quote(user, safe='')}:{password}@{parts.hostname}:{parts.port}").geturl()


@pytest.fixture(scope="module")
async def users(services: Services) -> AsyncIterator[dict[str, str]]:
    """Yield the URLs of three users that may do everything, so that only the worker itself can refuse them."""
    assert services.rabbit is not None
    names = {role: f"{role}@{uuid.uuid4().hex[:6]} 100%" for role in ("api", "developer", "runner")}
    definitions = {
        "users": [{"name": name, "password": "pw", "tags": []} for name in names.values()],
        "permissions": [
            {"user": name, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"} for name in names.values()
        ],
    }
    await asyncio.to_thread(services.rabbit.import_definitions, json.dumps(definitions).encode())
    yield {role: as_user(services.amqp_url, name, "pw") for role, name in names.items()}
    for name in names.values():
        await asyncio.to_thread(services.rabbit.ctl, "delete_user", name)


def name_of(url: str) -> str:
    """Return the broker's name of the user of a URL."""
    user = SupervisedConnection(url, "name").user
    assert user
    return user


@pytest.fixture
async def outside(database_url: str, amqp_url: str, amqp_prefix: str) -> AsyncIterator[WorkerHarness]:
    """Yield a harness without a worker."""
    async with external_harness(database_url, amqp_url, amqp_prefix) as harness:
        yield harness


async def publish(url: str, exchange: str, body: Any, **properties: Any) -> None:
    """Publish a message as this user. Raise ``AMQPError`` if the broker refuses it."""
    async with await aio_pika.connect(url, timeout=30) as connection:
        channel = await connection.channel()
        target = await channel.get_exchange(exchange, ensure=False)
        await target.publish(aio_pika.Message(json.dumps(body).encode(), **properties), "any", timeout=30)


def create_command(task_id: uuid.UUID, prompt: str) -> dict[str, Any]:
    """Return a create of this task."""
    return make_command("task.create", task_id, owner_id=str(ALICE), template_version_id=str(VERSION), input=prompt)


async def test_a_forged_command_is_refused(outside: WorkerHarness, users: dict[str, str]) -> None:
    """A delete in another's name counts only from a named sender: not a runner's, not one without ``user_id``."""
    commands = f"{outside.prefix}.commands"
    async with running_worker(outside):  # nothing is checked yet
        task_id = await outside.create(input="Keep this task")
    async with running_worker(outside, command_senders=f"{name_of(users['api'])}, {name_of(users['developer'])}"):
        forged = make_command("task.delete", task_id)
        await publish(users["runner"], commands, forged, user_id=name_of(users["runner"]))
        await publish(users["runner"], commands, forged)
        await publish(users["developer"], commands, forged)
        with pytest.raises(AMQPError):  # the broker refuses another's name
            await publish(users["runner"], commands, forged, user_id=name_of(users["api"]))
        await outside.until(lambda: outside.reasons() == ["untrusted_sender"] * 3)
        assert [json.loads(letter.body) for letter in outside.dead_letters] == [forged] * 3
        refused = await outside.refused_command("task.delete", task_id)
        assert (refused["status"], "untrusted_sender" in refused["detail"]) == (403, True)
        await outside.until_metric(4, "taskherd_dead_lettered_total", reason="untrusted_sender")
        await outside.until_metric(4, "taskherd_commands_total", type="unknown", outcome="invalid")
        await outside.until_row("SELECT deleted_at IS NULL FROM tasks WHERE id = $1", task_id)
        await publish(users["developer"], commands, forged, user_id=name_of(users["developer"]))
        await outside.until_row("SELECT deleted_at IS NOT NULL FROM tasks WHERE id = $1", task_id)


async def test_the_api_names_its_user(outside: WorkerHarness, users: dict[str, str]) -> None:
    """What the API's client publishes carries the user of its URL, percent-decoded, and is executed."""
    publishing = SupervisedConnection(users["api"], "publish")
    publishing.start()
    client = CommandClient(Publisher(publishing, identified=True), f"{outside.prefix}.commands", timeout=20)
    try:
        async with running_worker(outside, command_senders=name_of(users["api"])):
            body = json.dumps(create_command(uuid.uuid4(), "Say hello to the API")).encode()
            reply = json.loads((await client.call("task.create", body)).body)
            assert reply["ok"], reply
    finally:
        await publishing.close()


async def test_an_operator_replays_a_command(outside: WorkerHarness, users: dict[str, str], tmp_path: Path) -> None:
    """``taskherd dead replay`` vouches with the operator's user; refused ones are replayed by their id only."""
    task_id = uuid.uuid4()
    async with running_worker(outside, command_senders=name_of(users["developer"])):
        await publish(users["runner"], f"{outside.prefix}.commands", create_command(task_id, "Replay me"))
        await outside.until(lambda: outside.reasons() == ["untrusted_sender"])
        letter = outside.dead_letters[0]
        await outside.stop_dead_letters()
        taken = aio_pika.Message(letter.body, headers=letter.headers, message_id="m")
        await outside.channel.default_exchange.publish(taken, f"{outside.prefix}.dead", timeout=30)

        async def dead(*arguments: str, **settings: str) -> tuple[int, str]:
            environment = {
                "TASKHERD_AMQP_URL": users["developer"], "TASKHERD_AMQP_PREFIX": outside.prefix, "PATH": "", **settings,
            }  # fmt: skip
            done = await asyncio.to_thread(fork_server.run, ["dead", *arguments], environment, folder=tmp_path)
            return done.returncode, (done.stdout + done.stderr).decode()

        code, output = await dead("replay", "--all")
        assert (code, "came from no trusted sender" in output) == (1, True), output
        _, listed = await dead("list", "-o", "json")
        identity = json.loads(listed)[0]["id"]
        for setting in ({"TASKHERD_COMMAND_SENDERS": "other"}, {"TASKHERD_COMMAND_SENDERS": name_of(users["api"])}):
            code, output = await dead("replay", identity, **setting)
            assert (code, "TASKHERD_COMMAND_SENDERS" in output) == (1, True), output
        assert (await dead("replay", identity, TASKHERD_COMMAND_SENDERS=name_of(users["developer"])))[0] == 0
        await outside.until_row("SELECT count(*) FROM tasks WHERE id = $1", task_id, is_=1)


async def test_a_runner_reports_on_its_pools_only(outside: WorkerHarness, users: dict[str, str]) -> None:
    """Reports, heartbeats, claims and hellos about another pool, and those without ``user_id``, are refused alone."""
    await outside.database.execute('UPDATE template_versions SET run = \'{"pool": "gpu"}\'')
    reports, claims = f"{outside.prefix}.reports", f"{outside.prefix}.claims"
    runner, api = name_of(users["runner"]), name_of(users["api"])
    async with running_worker(outside):
        task_id = await outside.make_active(await outside.create(input="Train the model"))
    attacks: list[tuple[str, dict[str, Any]]] = [
        (reports, {"type": "app.status", "task_id": str(task_id), "state": "failed", "message": "Forged"}),
        (reports, {"type": "agent.heartbeat", "task_id": str(task_id), "build_number": 1}),
        (reports, {"type": "agent.heartbeat", "task_id": str(uuid.uuid4()), "build_number": 1}),
        (claims, {"type": "build.claim", "task_id": str(task_id), "build_number": 1, "runner": "r1"}),
        (claims, {"type": "runner.hello", "runner": "thief", "pool": "gpu"}),
    ]
    async with running_worker(outside, report_senders=f"{api}=*,{runner}=cpu|other"):
        for exchange, body in attacks:
            await publish(users["runner"], exchange, body, user_id=runner)
            await publish(users["api"], exchange, body)  # no user_id
        await outside.until(lambda: len(outside.dead_letters) == 2 * len(attacks))
        assert set(outside.reasons()) == {"untrusted_sender"}
        genuine = {"type": "app.status", "task_id": str(task_id), "state": "idle", "message": "Through the API"}
        await publish(users["api"], reports, genuine, user_id=api)
        await outside.until(lambda: outside.state(task_id).get("message") == "Through the API")
        assert await outside.database.fetchval("SELECT count(*) FROM parked") == 0
        assert await outside.database.fetchval("SELECT count(*) FROM runner_hellos") == 0
    async with running_worker(outside, report_senders=f"{api}=*,{runner}=cpu|gpu"):
        mixed = [{**attacks[0][1], "message": "Its own pool"}, {**attacks[0][1], "task_id": str(uuid.uuid4())}]
        await publish(users["runner"], reports, mixed, user_id=runner)
        await outside.until(lambda: outside.state(task_id).get("message") == "Its own pool")
        await outside.until(lambda: len(outside.dead_letters) == 2 * len(attacks) + 1)
        assert outside.dead_letters[-1].headers["x-taskherd-index"] == 1


@pytest.mark.parametrize("named", ["gpu", "gpu-1"])
async def test_a_runner_puts_no_work_into_queues_of_another_pool(
    outside: WorkerHarness, users: dict[str, str], named: str
) -> None:
    """It reports that another pool or its runner has a task of its own pool, which then gets the work."""
    runner = name_of(users["runner"])
    async with running_worker(outside):
        await outside.greet("gpu-1", "gpu")
        await outside.greet("r1", "default")
        task_id = await outside.create(input=f"Started by {named}")
    async with running_worker(outside, report_senders=f"{runner}=default"):

        async def report(number: int, transition: str, by: str) -> None:
            report = build_report(task_id, number, transition, "succeeded", runner=by)
            await publish(users["runner"], f"{outside.prefix}.reports", report, user_id=runner)
            await outside.until(lambda: outside.document(task_id).get("workspace_build_number") == number)

        async def requested(command: str, kind: str, number: int, *by: str) -> None:
            await outside.until_row("SELECT count(*) FROM work_requests WHERE task_id = $1", task_id, is_=0)
            assert (await outside.command(command, task_id))["ok"]
            await outside.until(lambda: routes(kind, number) >= {*by})
            assert routes(kind, number) == {*by}

        def routes(kind: str, number: int) -> set[str]:
            pairs = zip(outside.targets, outside.requests, strict=True)
            found = [key for key, each in pairs if (each["type"], each["build_number"]) == (kind, number)]
            return {key.removeprefix(f"{kind}.") for key in found}

        await report(1, "start", named)
        stopped_by = {"default", named} - {"gpu"}  # a stop brings no work
        await requested("task.pause", "workspace.stop", 2, *stopped_by)
        await report(2, "stop", named)
        await requested("task.resume", "workspace.start", 3, "default")
        await report(3, "start", "r1")
        await requested("task.pause", "workspace.stop", 4, "r1")
        assert await outside.queue_counts("work.gpu") == (0, 0)


async def test_a_sender_neither_takes_names_of_other_pools_nor_uses_up_all(
    outside: WorkerHarness, users: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of a runner that consumes or was heard lately is refused to other pools, and one sender has a share."""
    monkeypatch.setattr(work_queues, "MAX_RUNNERS_OF_SENDER", 3)
    thief, api = name_of(users["runner"]), name_of(users["api"])
    victims = {"consuming", "restarting", "gone"}
    pool_of = "SELECT pool FROM runner_hellos WHERE name = $1"
    longer_ago = "UPDATE runner_hellos SET hello_at = now() - interval '1 day'"

    async def refused(runner: str) -> str:
        before = len(outside.dead_letters)
        hello = {"type": "runner.hello", "runner": runner, "pool": "default"}
        await publish(users["runner"], f"{outside.prefix}.claims", hello, user_id=thief)
        found: list[str] = []

        async def decided() -> bool:
            found[:] = [str(each.headers["x-taskherd-detail"]) for each in outside.dead_letters[before:]]
            return bool(found) or await outside.database.fetchval(pool_of, runner) == "default"

        await eventually_async(decided, bool)
        return "".join(found)

    async with running_worker(outside):
        for victim in victims:
            await outside.greet(victim, "gpu")
        await outside.database.execute(longer_ago)
        queue = await outside.channel.get_queue(f"{outside.prefix}.work.consuming", ensure=False)
        tag = await queue.consume(outside._on_request)
        await outside.greet("restarting", "gpu")

    async def nothing(_: work_queues.WorkQueues) -> None:
        """Hellos come before a worker that has just started has read by itself which runners there are."""

    monkeypatch.setattr(work_queues.WorkQueues, "declare_missing_once", nothing)
    async with running_worker(outside, report_senders=f"{api}=*,{thief}=default"):
        await outside.until_row("SELECT count(*) FROM runner_hellos", is_=3)
        assert "is there" in await refused("consuming")
        await queue.cancel(tag)
        assert "is there" in await refused("consuming")  # it was seen just now, and may be restarting
        assert "is there" in await refused("restarting")
        assert await refused("gone") == ""  # as a runner that was given another pool
        for number in (1, 2):
            assert await refused(f"invented-{number}") == ""
        assert "of this sender" in await refused("invented-3")
        assert await refused("invented-1") == ""
        await outside.until_metric(4, "taskherd_claims_total", type="runner.hello", outcome="refused")
        honest = {"type": "runner.hello", "runner": "new", "pool": "gpu"}
        await publish(users["api"], f"{outside.prefix}.claims", honest, user_id=api)
        await outside.until_row(pool_of, "new", is_="gpu")
        for victim in ("consuming", "restarting"):
            assert await outside.database.fetchval(pool_of, victim) == "gpu"


async def test_a_runner_is_not_sent_what_agents_of_another_pool_are_told(
    outside: WorkerHarness, users: dict[str, str]
) -> None:
    """Without restricted senders it can report that it has a task of another pool, but gets none of its inputs.

    It is told of its end, without what the task is, and so is the runner that claimed it, which ends the agent.
    """
    async with running_worker(outside):
        await outside.greet("thief", "gpu")
        await outside.greet("r1")
        await outside.database.execute("""UPDATE template_versions SET run = '{"command": ["secret"]}'""")
        task_id = await outside.create()
        claim = {"type": "build.claim", "task_id": str(task_id), "build_number": 1, "runner": "r1"}
        assert await outside.ask(claim) == {"granted": True}
        await outside.make_active(task_id)
        theirs = build_report(task_id, 1, "start", "succeeded", runner="thief")
        await publish(users["runner"], f"{outside.prefix}.reports", theirs, user_id=name_of(users["runner"]))
        await outside.until_row("SELECT strpos(state::text, 'thief') > 0 FROM tasks WHERE id = $1", task_id)
        assert (await outside.command("task.send", task_id, input="The password is 1234"))["ok"]
        await outside.until(lambda: any(each["type"] == "agent.input" for each in outside.requests))
        pairs = zip(outside.targets, outside.requests, strict=True)
        assert [key for key, each in pairs if each["type"] == "agent.input"] == ["agent.input.default"]
        assert await outside.queue_counts("work.thief") == (0, 0)
        assert (await outside.command("task.pause", task_id))["ok"]

        def stops() -> dict[str, dict[str, Any]]:
            pairs = zip(outside.targets, outside.requests, strict=True)
            return {key: {**each, "attempt": 1} for key, each in pairs if each["type"] == "workspace.stop"}

        await outside.until(lambda: stops().keys() == {"workspace.stop.r1", "workspace.stop.thief"})
        honest, theirs = stops()["workspace.stop.r1"], stops()["workspace.stop.thief"]
        assert theirs == {**honest, "run": {}, "task_name": "", "owner": {**honest["owner"], "username": ""}}
        assert honest["run"] == {"command": ["secret"]}
        assert honest["task_name"]
        assert honest["owner"]["username"] == "alice"
