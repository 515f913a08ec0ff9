"""What a work request says of its task, read when it is sent."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import inputs, work_request_details
from taskherd.store.engine import transaction
from taskherd.store.work_request_details import WorkRequestDetails
from tests.store.conftest import NOW, execute_script
from tests.store.world import ALICE, BOB, DELETED, DORA, OF_ALICE, OF_BOB, OF_DORA, PRESET, V_BETAS, V_CLAUDE, WORLD

PROMPTS = "".join(
    f"INSERT INTO task_prompts (task_id, version, prompt) VALUES"
    f" ('{task}', 1, 'first of {number}'), ('{task}', 2, 'prompt of {number}'), ('{task}', 3, 'later of {number}');\n"
    for number, task in enumerate((OF_BOB, OF_ALICE, OF_DORA, DELETED))
)


async def test_a_request_has_what_its_task_refers_to(engine: AsyncEngine) -> None:
    """Its current prompt, its owner, and its version and preset of the directory; of a task without preset none."""
    parameters = """UPDATE presets SET parameters = '{"size":[1]}' WHERE name = 'small';\n"""
    await execute_script(engine, WORLD + PROMPTS + parameters)
    async with transaction(engine) as connection:
        ids = [OF_ALICE, OF_DORA, UUID(int=99), DELETED]
        found = await work_request_details.read(connection, ids, with_prompt=[*ids, OF_BOB])
        assert found.keys() == {OF_ALICE, OF_DORA, DELETED}
        assert found[OF_ALICE] == WorkRequestDetails(
            OF_ALICE,
            "Fix-It",
            ALICE,
            "Alice",
            V_CLAUDE,
            "prompt of 1",
            {"pool": "gpu"},
            PRESET,
            "small",
            {"size": [1]},
        )
        assert found[OF_DORA] == WorkRequestDetails(
            OF_DORA, "fix-it", DORA, "Dora", V_BETAS, "prompt of 2", {"pool": ""}, None, None, None
        )  # fmt: skip
        assert [found[each].pool for each in (OF_ALICE, OF_DORA)] == ["gpu", "default"]


async def test_only_the_prompts_that_are_asked_for_are_read(engine: AsyncEngine) -> None:
    """The details of the other tasks have none; asking for the prompt of a task does not ask for its details."""
    await execute_script(engine, WORLD + PROMPTS)
    async with transaction(engine) as connection:
        for asked in ([], [OF_DORA], [OF_DORA, OF_ALICE, OF_BOB]):
            found = await work_request_details.read(connection, [OF_ALICE, OF_DORA], with_prompt=asked)
            assert {task_id: each.prompt for task_id, each in found.items()} == {
                OF_ALICE: "prompt of 1" if OF_ALICE in asked else "",
                OF_DORA: "prompt of 2" if OF_DORA in asked else "",
            }


async def test_inputs_are_sent_with_their_contents(engine: AsyncEngine) -> None:
    """Those that are asked for and exist."""
    ids = [UUID(int=number) for number in (1, 2, 3)]
    async with transaction(engine) as connection:
        new = [inputs.NewInput(each, OF_BOB, f"input {each.int}", NOW, BOB) for each in ids]
        await inputs.append(connection, new)
        found = await work_request_details.input_contents(connection, [ids[2], ids[0], UUID(int=9)])
        assert found == {ids[0]: "input 1", ids[2]: "input 3"}
