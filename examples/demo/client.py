"""The demo's client of the API, with which it creates, reads and changes its tasks."""

from __future__ import annotations

import asyncio
from typing import Any

from examples.demo.scenarios import Scenario
from examples.demo.templates import template_id, version_id
from taskherd.client import tasks
from taskherd.client.errors import ClientError
from taskherd.client.http import ApiResponse, Client
from taskherd.errors import Unavailable


class DemoClient:
    """An asynchronous client for one user; every method raises ``Unavailable`` if a request fails."""

    def __init__(self, url: str, token: str) -> None:
        self._client = Client(url, token)

    async def create(self, scenario: Scenario) -> dict[str, Any]:
        """Create the task of a scenario, and return its document."""
        body = {"template_version_id": str(version_id(scenario.job)), "name": scenario.name, "input": scenario.prompt}
        response = await self._change("POST", "tasks", "me", body=body)
        created: dict[str, Any] = response.body
        return created

    async def show(self, scenario: Scenario) -> dict[str, Any]:
        """Return the task document."""
        response = await self._get("tasks", "me", scenario.name)
        document: dict[str, Any] = response.body
        return document

    async def logs(self, scenario: Scenario) -> list[dict[str, Any]]:
        """Return the conversation with a task's agent."""
        response = await self._get("tasks", "me", scenario.name, "logs")
        entries: list[dict[str, Any]] = response.body["logs"]
        return entries

    async def send(self, scenario: Scenario, text: str) -> bool:
        """Send a text to a task's agent; return whether it was queued in the inbox."""
        response = await self._change("POST", "tasks", "me", scenario.name, "send", body={"input": text})
        return response.headers.get("x-taskherd-queued") == "true"

    async def change_input(self, scenario: Scenario, text: str) -> None:
        """Change the prompt of a paused task."""
        await self._change("PATCH", "tasks", "me", scenario.name, "input", body={"input": text})

    async def pause(self, scenario: Scenario) -> None:
        """Stop a task's workspace."""
        await self._change("POST", "tasks", "me", scenario.name, "pause")

    async def resume(self, scenario: Scenario) -> None:
        """Start a task's workspace again."""
        await self._change("POST", "tasks", "me", scenario.name, "resume")

    async def delete(self, name: str) -> None:
        """Delete a task and its workspace."""
        await self._change("DELETE", "tasks", "me", name)

    async def left_over(self, job: str) -> list[str]:
        """Return the names of the tasks that an interrupted demo left for a job: those that are not paused."""
        response = await self._get("tasks", query={"q": "owner:me"})
        return [
            each["name"]
            for each in response.body["tasks"]
            if each["template_id"] == str(template_id(job)) and each["status"] != "paused"
        ]

    async def _get(self, *path: str, query: dict[str, str] | None = None) -> ApiResponse:
        try:
            return await asyncio.to_thread(self._client.request, "GET", *path, query=query)
        except ClientError as error:
            raise Unavailable(f"GET {'/'.join(path)}: {error.message}") from None

    async def _change(self, method: str, *path: str, body: Any = None) -> ApiResponse:
        try:
            return await asyncio.to_thread(tasks.change, self._client, method, *path, body=body)
        except ClientError as error:
            raise Unavailable(f"{method} {'/'.join(path)}: {error.message}") from None
