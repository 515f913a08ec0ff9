"""Users who send commands at the same time: the many of one do not hold up those of another, and none is lost."""

from __future__ import annotations

import asyncio

from taskherd.api.command_slots import FEW_OF_USER
from tests.api.conftest import StartApi
from tests.harness.api import VERSION, ApiHarness
from tests.harness.worker import TIMEOUT, running_worker

MANY = 20


async def post(api: ApiHarness, user: str, text: str) -> int:
    """Create a task of a user and return the status of the response."""
    body = {"template_version_id": str(VERSION), "input": text}
    return (await api.clients[user].post("/tasks/me", json=body)).status_code


async def until_waiting(api: ApiHarness, count: int) -> None:
    """Wait until so many commands wait for their replies."""
    async with asyncio.timeout(TIMEOUT):
        while api.api.metrics.registry.get_sample_value("taskherd_api_commands_waiting") != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_many_of_one_user_wait_in_the_api_while_others_send(start_api: StartApi) -> None:
    """Few commands of a user with many are sent beside another user's; all of them are executed, each once."""
    async with start_api(worker=False, api_command_timeout=60) as api:
        of_bob = asyncio.create_task(post(api, "bob", "Bob's only one"))
        await until_waiting(api, 1)
        of_alice = [asyncio.create_task(post(api, "alice", f"Alice's task {number}")) for number in range(MANY)]
        await until_waiting(api, 1 + FEW_OF_USER)
        async with running_worker(api.worker):
            assert await of_bob == 201
            assert await asyncio.gather(*of_alice) == [201] * MANY
            prompts = await api.worker.database.fetch("SELECT prompt FROM task_prompts")
    assert sorted(row["prompt"] for row in prompts) == sorted(
        ["Bob's only one", *(f"Alice's task {number}" for number in range(MANY))]
    )


async def test_waiting_for_a_turn_counts_as_time_of_the_command(start_api: StartApi) -> None:
    """Without a worker all are answered after the time limit of one command, and what was not sent is not executed."""
    async with start_api(worker=False, api_command_timeout=3) as api:
        started = asyncio.get_running_loop().time()
        of_bob = asyncio.create_task(post(api, "bob", "Bob's only one"))
        await until_waiting(api, 1)
        statuses = await asyncio.gather(*(post(api, "alice", f"Alice's task {number}") for number in range(MANY)))
        assert asyncio.get_running_loop().time() - started < 3 * MANY / FEW_OF_USER
        assert [await of_bob, *statuses] == [503] * (1 + MANY)
        async with running_worker(api.worker):
            assert await post(api, "carol", "Carol's task") == 201
            assert await api.worker.database.fetchval("SELECT count(*) FROM tasks") <= 2 + FEW_OF_USER
