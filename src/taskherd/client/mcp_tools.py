"""The tools of ``taskherd mcp``: report_task for agents, and task management for the assistants of users.

Names and arguments are those of Coder's MCP server, so prompts and configurations written for it keep working.
The docstrings of the tools and the descriptions of their arguments are shown to models.
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
"""Maximum number of tasks that ``list_tasks`` returns."""
AGENT_TOKEN: Final = ("TASKHERD_AGENT_TOKEN", "CODER_AGENT_TOKEN")
AGENT_URL: Final = ("TASKHERD_API_URL", "CODER_AGENT_URL", "CODER_URL")
USER_TOKEN: Final = (TOKEN, "CODER_SESSION_TOKEN")
USER_URL: Final = (URL, "CODER_URL")
"""Environment variables of each value; the first one that is set is used."""

T = TypeVar("T")
Status = Literal["pending", "initializing", "active", "paused", "unknown", "error"]
TaskId = Annotated[str, Field(description="The task: its id, or [owner/]name; the default owner is you.")]
Username = Annotated[str, Field(description="A username or id. Default: the user who owns the token.")]
Document = dict[str, Any]


class AgentTools:
    """The tool of an agent, which reports the state of its own task."""

    def __init__(self, client: Client, app_slug: str) -> None:
        self._client = client
        self._app_slug = app_slug

    async def report_task(
        self,
        summary: Annotated[str, Field(description="What you are doing, in one sentence of at most 160 characters.")],
        state: Annotated[
            Literal["working", "idle", "complete", "failure"],
            Field(description="working, idle (waiting for a person), complete, or failure (you cannot continue)."),
        ],
        link: Annotated[str, Field(description="A related URL, such as a pull request.")] = "",
    ) -> Document:
        """Report the progress of your task. Call this when you start, when the state changes, and when you finish."""
        body = {"app_slug": self._app_slug, "state": state, "message": summary, "uri": link}
        await _call(self._client.request, "PATCH", "workspaceagents", "me", "app-status", body=body)
        return {"message": "Thanks for reporting!"}


class UserTools:
    """The tools of a user: create, list, read, send input to and delete tasks."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create_task(
        self,
        input: Annotated[str, Field(min_length=1, description="The prompt for the agent.")],  # noqa: A002 - the name is the contract
        template_version_id: Annotated[
            str, Field(description="The id of the template version that defines how the agent runs.")
        ],
        template_version_preset_id: Annotated[
            str, Field(description="The id of a preset of the template version.")
        ] = "",
        user: Username = "",
    ) -> Document:
        """Create a task: start a new agent with a prompt."""
        body = {"input": input, "template_version_id": template_version_id}
        if template_version_preset_id:
            body["template_version_preset_id"] = template_version_preset_id
        response = await _call(tasks.change, self._client, "POST", "tasks", user or "me", body=body)
        task: Document = response.body
        return task

    async def list_tasks(
        self,
        status: Annotated[Status | Literal[""], Field(description="Return only tasks with this status.")] = "",
        user: Username = "",
    ) -> Document:
        """List up to 100 tasks, newest first."""
        terms = {"owner": user or "me", **({"status": status} if status else {})}
        return {"tasks": await _call(lambda: list(tasks.list_tasks(self._client, terms, MAX_LISTED)))}

    async def get_task_status(self, task_id: TaskId) -> Document:
        """Return the status of a task and what its agent is doing."""
        document = await _call(tasks.show, self._client, _task_reference(task_id))
        return {"status": document["status"], "state": document["current_state"]}

    async def get_task_logs(self, task_id: TaskId) -> Document:
        """Return the conversation with a task's agent."""
        response = await _call(lambda: self._client.request("GET", *tasks.path_of(_task_reference(task_id)), "logs"))
        logs: Document = response.body
        return logs

    async def send_task_input(
        self,
        task_id: TaskId,
        input: Annotated[str, Field(min_length=1, description="The text to send.")],  # noqa: A002 - as above
    ) -> Document:
        """Send input to a task's agent. If the agent is busy, the input is queued until it is idle."""
        body = {"input": input}
        response = await _call(
            lambda: tasks.change(self._client, "POST", *tasks.path_of(_task_reference(task_id)), "send", body=body)
        )
        queued = response.headers.get("x-taskherd-queued") == "true"
        return {
            "message": "Input queued: it waits until the agent is idle."
            if queued
            else "Input sent to task successfully."
        }

    async def delete_task(self, task_id: TaskId) -> Document:
        """Delete a task with its workspace; files that the agent created there are lost."""
        await _call(lambda: tasks.change(self._client, "DELETE", *tasks.path_of(_task_reference(task_id))))
        return {"message": "Task deleted successfully"}


def server(environ: Mapping[str, str]) -> MCPServer[Any]:
    """Build the MCP server, with the agent's tool if there is an agent token and the user's tools if there is a user's.

    Raise ``ClientError`` if there is no token, or no valid URL for a token.
    """
    mcp: MCPServer[Any] = MCPServer(NAME, version=__version__, log_level="WARNING")
    agent_token, user_token = _first_set(environ, AGENT_TOKEN), _first_set(environ, USER_TOKEN)
    if agent_token:
        agent = AgentTools(_client(environ, AGENT_URL, agent_token), environ.get("CODER_MCP_APP_STATUS_SLUG", ""))
        mcp.add_tool(agent.report_task, name="coder_report_task")
    if user_token:
        user = UserTools(_client(environ, USER_URL, user_token))
        mcp.add_tool(user.create_task, name="coder_create_task")
        mcp.add_tool(user.list_tasks, name="coder_list_tasks")
        mcp.add_tool(user.get_task_status, name="coder_get_task_status")
        mcp.add_tool(user.get_task_logs, name="coder_get_task_logs")
        mcp.add_tool(user.send_task_input, name="coder_send_task_input")
        mcp.add_tool(user.delete_task, name="coder_delete_task")
    if not (agent_token or user_token):
        advice = f"set {TOKEN} and {URL}; inside a task, the runner sets {AGENT_TOKEN[0]}"
        raise ClientError(ExitCode.USAGE, "no token is set, so there are no tools to offer", advice)
    return mcp


async def _call(call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call the blocking client in a thread; turn its error into a tool error, which the model reads."""
    try:
        return await asyncio.to_thread(call, *args, **kwargs)
    except ClientError as error:
        raise ToolError(f"{error.message} ({error.advice})" if error.advice else error.message) from None


def _task_reference(task_id: str) -> str:
    """Return a task reference for the API: without the agent name that Coder's tools accept, ``/`` for ``--``."""
    return task_id.strip().partition(".")[0].replace("--", "/")


def _first_set(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environ[name].strip() for name in names if environ.get(name)), "")


def _client(environ: Mapping[str, str], names: tuple[str, ...], token: str) -> Client:
    url = _first_set(environ, names)
    if urlsplit(url).scheme not in {"http", "https"}:
        raise ClientError(
            ExitCode.USAGE, f"{names[0]}: invalid server URL {url!r}", "expected a URL such as http://127.0.0.1:7080"
        )
    return Client(url, token)
