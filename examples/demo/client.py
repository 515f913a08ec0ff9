"""The demo's client of the API, with which it creates, reads and changes its tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from examples.demo.scenarios import ADMIN, Scenario
from examples.demo.templates import template_id, version_id
from taskherd.client import tasks
from taskherd.client.errors import ClientError
from taskherd.client.http import ApiResponse, Client
from taskherd.errors import Unavailable


class DemoClient:
    """An asynchronous client for the people of the demo; every method raises ``Unavailable`` if a request fails.

    Unless a method says otherwise, a task is read and changed by its owner.
    """

    def __init__(self, url: str, tokens: Mapping[str, str]) -> None:
        """Create it with the token of each person."""
        self._clients = {person: Client(url, token) for person, token in tokens.items()}

    async def create(self, scenario: Scenario) -> dict[str, Any]:
        """Create the task of a scenario, and return its document."""
        body = {"template_version_id": str(version_id(scenario.job)), "name": scenario.name, "input": scenario.prompt}
        response = await self._change(scenario.owner, "POST", "tasks", "me", body=body)
        created: dict[str, Any] = response.body
        return created

    async def show(self, scenario: Scenario) -> dict[str, Any]:
        """Return the task document."""
        response = await self._get(scenario.owner, "tasks", "me", scenario.name)
        document: dict[str, Any] = response.body
        return document

    async def logs(self, scenario: Scenario) -> list[dict[str, Any]]:
        """Return the conversation with a task's agent."""
        response = await self._get(scenario.owner, "tasks", "me", scenario.name, "logs")
        entries: list[dict[str, Any]] = response.body["logs"]
        return entries

    async def send(self, scenario: Scenario, text: str) -> bool:
        """Send a text to a task's agent; return whether it was queued in the inbox."""
        response = await self._send(scenario.owner, scenario, {"input": text})
        return response.headers.get("x-taskherd-queued") == "true"

    async def reply(self, scenario: Scenario, text: str) -> str:
        """Send a text in the same way; return the id of the question that it answered, or "" if it answered none."""
        response = await self._send(scenario.owner, scenario, {"input": text})
        return response.headers.get("x-taskherd-answered", "")

    async def steer(self, scenario: Scenario, text: str) -> None:
        """Interrupt a task's agent, and send it a text that goes before all others; the administrator does that."""
        await self._send(ADMIN, scenario, {"input": text, "interrupt": True})

    async def requests(self, scenario: Scenario) -> list[dict[str, Any]]:
        """Return what a task's agent has asked."""
        response = await self._get(scenario.owner, "tasks", "me", scenario.name, "requests")
        found: list[dict[str, Any]] = response.body["requests"]
        return found

    async def answer(self, scenario: Scenario, request_id: str, option_id: str) -> None:
        """Answer what a task's agent asks."""
        path = ("tasks", "me", scenario.name, "requests", request_id, "answer")
        await self._change(scenario.owner, "POST", *path, body={"option_id": option_id})

    async def timeline(self, scenario: Scenario) -> list[dict[str, Any]]:
        """Return the changes of a task, each with its cause."""
        response = await self._get(scenario.owner, "tasks", "me", scenario.name, "events")
        events: list[dict[str, Any]] = response.body["events"]
        return events

    async def change_input(self, scenario: Scenario, text: str) -> None:
        """Change the prompt of a paused task."""
        await self._change(scenario.owner, "PATCH", "tasks", "me", scenario.name, "input", body={"input": text})

    async def pause(self, scenario: Scenario) -> None:
        """Stop a task's workspace."""
        await self._change(scenario.owner, "POST", "tasks", "me", scenario.name, "pause")

    async def resume(self, scenario: Scenario) -> None:
        """Start a task's workspace again."""
        await self._change(scenario.owner, "POST", "tasks", "me", scenario.name, "resume")

    async def delete(self, owner: str, name: str) -> None:
        """Delete a task and its workspace."""
        await self._change(owner, "DELETE", "tasks", "me", name)

    async def left_over(self, scenario: Scenario) -> list[str]:
        """Return the names of the tasks that an interrupted demo left for a job: those that are not paused."""
        response = await self._get(scenario.owner, "tasks", query={"q": "owner:me"})
        return [
            each["name"]
            for each in response.body["tasks"]
            if each["template_id"] == str(template_id(scenario.job)) and each["status"] != "paused"
        ]

    async def await_state(self, scenario: Scenario, state: str, within: float) -> bool:
        """Wait up to ``within`` seconds until a task's status or state is this one; return whether it is."""
        return await self._await(scenario.owner, scenario.name, state, within)

    async def pause_all(self, within: float) -> bool:
        """Pause all tasks, and wait up to ``within`` seconds for each; return whether all are paused."""
        running = [
            (person, task["name"])
            for person in self._clients
            for task in (await self._get(person, "tasks", query={"q": "owner:me"})).body["tasks"]
            if task["status"] != "paused"
        ]
        for person, name in running:
            await self._change(person, "POST", "tasks", "me", name, "pause")
        return all([await self._await(person, name, "paused", within) for person, name in running])

    async def _await(self, person: str, name: str, awaited: str, within: float) -> bool:
        try:
            document, _ = await asyncio.to_thread(tasks.wait, self._clients[person], name, [awaited], within)
        except ClientError as error:
            raise Unavailable(f"waiting for {name}: {error.message}") from None
        return awaited in tasks.status_and_state(document)

    async def _send(self, person: str, scenario: Scenario, body: dict[str, Any]) -> ApiResponse:
        return await self._change(person, "POST", "tasks", scenario.owner, scenario.name, "send", body=body)

    async def _get(self, person: str, *path: str, query: dict[str, str] | None = None) -> ApiResponse:
        try:
            return await asyncio.to_thread(self._clients[person].request, "GET", *path, query=query)
        except ClientError as error:
            raise Unavailable(f"GET {'/'.join(path)}: {error.message}") from None

    async def _change(self, person: str, method: str, *path: str, body: Any = None) -> ApiResponse:
        try:
            return await asyncio.to_thread(tasks.change, self._clients[person], method, *path, body=body)
        except ClientError as error:
            raise Unavailable(f"{method} {'/'.join(path)}: {error.message}") from None
