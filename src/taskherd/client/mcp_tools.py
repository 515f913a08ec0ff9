"""The tools of `taskherd mcp`: what agents report with, and what people's assistants do with tasks.

Their names and arguments are those of Coder's own MCP server: prompts and settings written for it go on working.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from taskherd import __version__
from taskherd.client import tasks
from taskherd.client.errors import ClientError, ExitCode
from taskherd.client.http import TOKEN, URL, Client

NAME: Final = "taskherd"
MAX_LISTED: Final = 100
MAX_SUMMARY: Final = 2_000
"""Characters of a status message that the API keeps."""

AGENT_TOKEN: Final = ("TASKHERD_AGENT_TOKEN", "CODER_AGENT_TOKEN")
AGENT_URL: Final = ("TASKHERD_API_URL", "CODER_AGENT_URL", "CODER_URL")
PERSON_TOKEN: Final = (TOKEN, "CODER_SESSION_TOKEN")
PERSON_URL: Final = (URL, "CODER_URL")
"""Where each is read from, the first that is set."""

T = TypeVar("T")
Status = Literal["pending", "initializing", "active", "paused", "unknown", "error"]
TaskId = Annotated[str, Field(description="The task: its id, or [owner/]name; without an owner it is one of yours.")]
User = Annotated[str, Field(description="A username or id; `me` or nothing is the person whose token it is.")]
Document = dict[str, Any]


class AgentTools:
    """What an agent may say of its one task."""

    def __init__(self, client: Client, app_slug: str) -> None:
        self._client = client
        self._app_slug = app_slug

    async def report_task(
        self,
        summary: Annotated[str, Field(description="What you are doing, in a sentence of at most 160 characters.")],
        state: Annotated[
            Literal["working", "idle", "complete", "failure"],
            Field(description="working; idle when you wait for a person; complete; failure when you can't go on."),
        ],
        link: Annotated[str, Field(description="The URL of what it is about, such as a pull request.")] = "",
    ) -> Document:
        """Say how far you are with your task. Call it when you begin, when that changes, and when you are done."""
        said = {"app_slug": self._app_slug, "state": state, "message": summary[:MAX_SUMMARY], "uri": link}
        await _call(self._client.request, "PATCH", "workspaceagents", "me", "app-status", body=said)
        return {"message": "Thanks for reporting!"}


class PersonTools:
    """What a person may do with tasks."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create_task(
        self,
        input: Annotated[str, Field(min_length=1, description="The prompt.")],  # noqa: A002 - the name is the contract
        template_version_id: Annotated[
            str, Field(description="The id of the template version that says how to run it.")
        ],
        template_version_preset_id: Annotated[str, Field(description="The id of one of its presets.")] = "",
        user: User = "",
    ) -> Document:
        """Create a task: give a prompt to a new agent."""
        body = {"input": input, "template_version_id": template_version_id}
        if template_version_preset_id:
            body["template_version_preset_id"] = template_version_preset_id
        told = await _call(tasks.change, self._client, "POST", "tasks", user or "me", body=body)
        created: Document = told.body
        return created

    async def list_tasks(
        self,
        status: Annotated[Status | Literal[""], Field(description="Only those of this status.")] = "",
        user: User = "",
    ) -> Document:
        """List tasks, the newest first, at most a hundred."""
        terms = {"owner": user or "me", **({"status": status} if status else {})}
        found = await _call(lambda: list(tasks.list_tasks(self._client, terms, MAX_LISTED)))
        return {"tasks": found}

    async def get_task_status(self, task_id: TaskId) -> Document:
        """Say how a task is, and what its agent says that it is doing."""
        document = await _call(tasks.show, self._client, _named(task_id))
        return {"status": document["status"], "state": document["current_state"]}

    async def get_task_logs(self, task_id: TaskId) -> Document:
        """Give the conversation with a task's agent."""
        told = await _call(lambda: self._client.request("GET", *tasks.path_of(_named(task_id)), "logs"))
        logs: Document = told.body
        return logs

    async def send_task_input(
        self,
        task_id: TaskId,
        input: Annotated[str, Field(min_length=1, description="What to say to the agent.")],  # noqa: A002 - as above
    ) -> Document:
        """Say something to a task's agent; while it is busy, that waits until it can be heard."""
        said = {"input": input}
        told = await _call(
            lambda: tasks.change(self._client, "POST", *tasks.path_of(_named(task_id)), "send", body=said)
        )
        queued = told.headers.get("x-taskherd-queued") == "true"
        return {"message": "It waits until the agent is idle." if queued else "Input sent to task successfully."}

    async def delete_task(self, task_id: TaskId) -> Document:
        """Delete a task, its agent and what the agent made."""
        await _call(lambda: tasks.change(self._client, "DELETE", *tasks.path_of(_named(task_id))))
        return {"message": "Task deleted successfully"}


def server(environ: Mapping[str, str]) -> MCPServer[Any]:
    """The server, with the tools for which there is a token; raises ClientError where there is none, or no URL."""
    made: MCPServer[Any] = MCPServer(NAME, version=__version__, log_level="WARNING")
    agent, person = _first(environ, AGENT_TOKEN), _first(environ, PERSON_TOKEN)
    if agent:
        tools = AgentTools(_client(environ, AGENT_URL, agent), environ.get("CODER_MCP_APP_STATUS_SLUG", ""))
        made.add_tool(tools.report_task, name="coder_report_task")
    if person:
        own = PersonTools(_client(environ, PERSON_URL, person))
        made.add_tool(own.create_task, name="coder_create_task")
        made.add_tool(own.list_tasks, name="coder_list_tasks")
        made.add_tool(own.get_task_status, name="coder_get_task_status")
        made.add_tool(own.get_task_logs, name="coder_get_task_logs")
        made.add_tool(own.send_task_input, name="coder_send_task_input")
        made.add_tool(own.delete_task, name="coder_delete_task")
    if not (agent or person):
        advice = f"an agent is given {AGENT_TOKEN[0]} by its runner; a person sets {TOKEN} and {URL}"
        raise ClientError(ExitCode.USAGE, "there is no token, so there is nothing to do", advice)
    return made


async def _call(call: Callable[..., T], *words: Any, **more: Any) -> T:
    """Ask the API, off the event loop; a refusal is the tool's error, for the model to read."""
    try:
        return await asyncio.to_thread(call, *words, **more)
    except ClientError as error:
        raise ToolError(f"{error.message} ({error.advice})" if error.advice else error.message) from None


def _named(task_id: str) -> str:
    """What Coder's tools take for a task, as the API does: without the name of an agent behind it."""
    return task_id.strip().partition(".")[0].replace("--", "/")


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environ[name].strip() for name in names if environ.get(name)), "")


def _client(environ: Mapping[str, str], names: tuple[str, ...], token: str) -> Client:
    url = _first(environ, names)
    if urlsplit(url).scheme not in {"http", "https"}:
        raise ClientError(ExitCode.USAGE, f"{names[0]}: {url!r} is no URL of a server", "such as http://127.0.0.1:7080")
    return Client(url, token)
