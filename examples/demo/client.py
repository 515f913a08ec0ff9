"""Where the demo creates and changes its tasks: the API, as a person's own tool would use it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from examples.demo.scenarios import Scenario
from examples.demo.templates import template_id, version_id
from taskherd.client import tasks
from taskherd.client.errors import ClientError
from taskherd.client.http import ApiResponse, Client
from taskherd.errors import Unavailable


class DemoClient:
    """Speaks for one user; every method raises Unavailable when the API refuses or does not answer."""

    def __init__(self, url: str, token: str) -> None:
        self._client = Client(url, token)

    async def create(self, part: Scenario) -> dict[str, Any]:
        """Create the task of a part; its document."""
        body = {"template_version_id": str(version_id(part.job)), "name": part.name, "input": part.prompt}
        told = await self._change("POST", "tasks", "me", body=body)
        created: dict[str, Any] = told.body
        return created

    async def show(self, part: Scenario) -> dict[str, Any]:
        """A task's document."""
        told = await self._ask("GET", "tasks", "me", part.name)
        document: dict[str, Any] = told.body
        return document

    async def logs(self, part: Scenario) -> list[dict[str, Any]]:
        """The conversation with a task's agent."""
        told = await self._ask("GET", "tasks", "me", part.name, "logs")
        found: list[dict[str, Any]] = told.body["logs"]
        return found

    async def send(self, part: Scenario, text: str) -> bool:
        """Say something to a task's agent; whether it waits in the inbox."""
        told = await self._change("POST", "tasks", "me", part.name, "send", body={"input": text})
        return told.headers.get("x-taskherd-queued") == "true"

    async def change_input(self, part: Scenario, text: str) -> None:
        """Give a paused task another prompt."""
        await self._change("PATCH", "tasks", "me", part.name, "input", body={"input": text})

    async def pause(self, part: Scenario) -> None:
        """Stop a task's workspace."""
        await self._change("POST", "tasks", "me", part.name, "pause")

    async def resume(self, part: Scenario) -> None:
        """Start a task's workspace again."""
        await self._change("POST", "tasks", "me", part.name, "resume")

    async def delete(self, name: str) -> None:
        """Delete a task and its workspace."""
        await self._change("DELETE", "tasks", "me", name)

    async def left_over(self, job: str) -> list[tuple[UUID, str]]:
        """The id and name of the tasks that an earlier demo had with a job and that are not paused."""
        told = await self._ask("GET", "tasks", query={"q": "owner:me"})
        return [
            (UUID(each["id"]), each["name"])
            for each in told.body["tasks"]
            if each["template_id"] == str(template_id(job)) and each["status"] != "paused"
        ]

    async def _ask(self, *words: str, **more: Any) -> ApiResponse:
        try:
            return await asyncio.to_thread(self._client.request, *words, **more)
        except ClientError as error:
            raise Unavailable(f"{' '.join(words)}: {error.message}") from None

    async def _change(self, method: str, *path: str, body: Any = None) -> ApiResponse:
        try:
            return await asyncio.to_thread(tasks.change, self._client, method, *path, body=body)
        except ClientError as error:
            raise Unavailable(f"{method} {'/'.join(path)}: {error.message}") from None
