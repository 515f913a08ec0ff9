"""The task routes, end to end: over a socket, through the broker and the worker, to the database and back."""

from __future__ import annotations

from tests.api.stage import Stage


async def test_a_task_is_created_found_and_listed(house: Stage) -> None:
    """What a create answers is what get and list answer, by id and by name, under both prefixes."""
    task = await house.create(name="My-Task")
    for path in (f"/tasks/me/{task['id']}", "/tasks/me/my-task", "/tasks/ALICE/My-Task", f"/tasks/bob/{task['id']}"):
        response = await house.alice.get(path)
        assert (response.status_code, response.json()) == (200, task), path
    listed = (await house.alice.get("/tasks")).json()
    assert listed == {"tasks": [task], "count": 1}
    experimental = await house.alice.get(f"{house.base}/api/experimental/tasks?q=owner:alice")
    assert experimental.json() == listed
