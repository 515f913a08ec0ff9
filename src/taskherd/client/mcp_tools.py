"""The tools of ``taskherd mcp``: reports and questions of agents, and task management for the assistants of users.

Names and arguments are those of Coder's MCP server, so prompts and configurations written for it keep working.
The descriptions of the tools and of their arguments are shown to models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from taskherd.client import agent_requests, asking, http, tasks
from taskherd.client.errors import ClientError, ExitCode
from taskherd.client.http import TOKEN, URL, Client
from taskherd.client.mcp_stdio import Argument, Tool

NAME: Final = "taskherd"
MAX_LISTED: Final = 100
"""Maximum number of tasks that ``list_tasks`` returns."""
AGENT_TOKEN: Final = ("TASKHERD_AGENT_TOKEN", "CODER_AGENT_TOKEN")
AGENT_URL: Final = ("TASKHERD_API_URL", "CODER_AGENT_URL", "CODER_URL")
USER_TOKEN: Final = (TOKEN, "CODER_SESSION_TOKEN")
USER_URL: Final = (URL, "CODER_URL")
"""Environment variables of each value; the first one that is set is used."""
TEMPLATE_FIELDS: Final = ("display_name", "id", "name", "description", "active_version_id", "active_user_count")
"""The fields of a template that a model sees, those of Coder's tool."""

AGENT_FIELDS: Final = ("agent_exit", "stalled_since", "workspace_agent_health", "requests", "requests_open")
"""The fields of a task that say whether its agent still runs, and what it asks; Coder's tool returns none of them."""

TOKENS: Final = {
    "input_tokens": "read by the model, without those from a cache",
    "output_tokens": "written by the model",
    "cache_read_tokens": "read from a cache",
    "cache_write_tokens": "written to a cache",
    "context_used": "in the model's context now",
    "context_size": "that the model's context can hold",
}
"""The numbers of a report of usage, and what each counts."""

STATUSES: Final = ("pending", "initializing", "active", "paused", "unknown", "error")
TASK_ID: Final = Argument("The task: its id, or [owner/]name; the default owner is you.", required=True)
USER: Final = Argument("A username or id. Default: the user who owns the token.")
Document = dict[str, Any]


class AgentTools:
    """The tools of an agent, which reports the state of its own task and what it used, and asks people."""

    def __init__(self, client: Client, app_slug: str) -> None:
        self._client = client
        self._app_slug = app_slug

    def tools(self) -> list[Tool]:
        """Return the tools with their descriptions."""
        return [
            Tool(
                "coder_report_task",
                "Report the progress of your task."
                " Call this when you start, when the state changes, and when you finish.",
                {
                    "summary": Argument("What you are doing, in a sentence of at most 160 characters.", required=True),
                    "state": Argument(
                        "working, idle (waiting for a person), complete, or failure (you cannot continue).",
                        required=True,
                        choices=("working", "idle", "complete", "failure"),
                    ),
                    "link": Argument("A related URL, such as a pull request."),
                },
                self.report_task,
            ),
            Tool(
                "report_usage",
                "Report what you used a model for, if you know it: the totals since you were started, not what was"
                " added since the last report. Leave out what you do not know.",
                {
                    "model": Argument("The name of the model."),
                    **{name: Argument(f"Tokens: {meaning}.", is_number=True) for name, meaning in TOKENS.items()},
                    "cost": Argument("What that cost, as a decimal number in a text, such as 0.0123."),
                    "currency": Argument("The currency of the cost, such as USD, which is the default."),
                },
                self.report_usage,
            ),
            Tool(
                "ask_person",
                "Ask the people who follow your task, and wait for their answer, however long that takes. Use it when"
                " you cannot go on without a decision or a permission; do not ask what you can find out yourself.",
                {
                    "question": Argument("The question, in a sentence of at most 200 characters.", required=True),
                    "detail": Argument("What they need to know to answer it."),
                    "options": Argument("The answers to choose from, up to 16, one per line. Without any, they write."),
                },
                self.ask_person,
                waits=True,
            ),
        ]

    def ask_person(self, question: str, detail: str, options: str, is_cancelled: Callable[[], bool]) -> Document:
        """Ask people, and return their answer once there is one."""
        labels = list(dict.fromkeys(filter(None, map(str.strip, options.splitlines()))))
        fields: Document = {"kind": "question", "title": question, **({"detail": detail} if detail else {})}
        fields["options"] = [
            {"id": str(number), "label": label, "kind": "other"} for number, label in enumerate(labels, start=1)
        ]
        found = asking.ask(self._client, fields, is_cancelled)
        if found["state"] != "answered":
            return {"state": found["state"], "message": "Nobody answered: decide yourself, or stop."}
        chosen = None if found["option_id"] is None else labels[int(found["option_id"]) - 1]
        return {"state": found["state"], "option": chosen, "text": found["text"]}

    def report_task(self, summary: str, state: str, link: str) -> Document:
        """Report the state of the agent's own task."""
        body = {"app_slug": self._app_slug, "state": state, "message": summary, "uri": link}
        self._client.request("PATCH", "workspaceagents", "me", "app-status", body=body)
        return {"message": "Thanks for reporting!"}

    def report_usage(self, cost: str, currency: str, **fields: Any) -> Document:
        """Report what the agent of the own task used."""
        body = {name: value for name, value in fields.items() if value not in (None, "")}
        if cost:
            body["cost"] = {"amount": cost, "currency": currency or "USD"}
        self._client.request("POST", "workspaceagents", "me", "usage", body=body)
        return {"message": "Thanks for reporting!"}


class UserTools:
    """The tools of a user: list templates; create, list, read, send input to, interrupt and delete tasks."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def tools(self) -> list[Tool]:
        """Return the tools with their descriptions."""
        version = Argument(
            "The id of the template version that defines how the agent runs: a template's active_version_id.",
            required=True,
        )
        return [
            Tool(
                "coder_list_templates",
                "List the templates that you can create tasks from, each with the id of its active version.",
                {},
                self.list_templates,
            ),
            Tool(
                "coder_create_task",
                "Create a task: start a new agent with a prompt.",
                {
                    "input": Argument("The prompt for the agent.", required=True),
                    "template_version_id": version,
                    "template_version_preset_id": Argument("The id of a preset of the template version."),
                    "user": USER,
                },
                self.create_task,
            ),
            Tool(
                "coder_list_tasks",
                "List up to 100 tasks, newest first. The state of a task is what its agent reported last; see"
                " agent_exit, stalled_since and workspace_agent_health for whether that agent still runs.",
                {"status": Argument("Return only tasks with this status.", choices=STATUSES), "user": USER},
                self.list_tasks,
            ),
            Tool(
                "coder_get_task_status",
                "Return the status of a task and what its agent reported last. agent_exit: how the agent ended, null"
                " while it has not; stalled_since: since when it has sent nothing but heartbeats;"
                " workspace_agent_health: whether it is running and connected. An agent that ended or is lost does"
                " nothing more, whatever its state says.",
                {"task_id": TASK_ID},
                self.get_task_status,
            ),
            Tool(
                "coder_get_task_logs",
                "Return the conversation with a task's agent.",
                {"task_id": TASK_ID},
                self.get_task_logs,
            ),
            Tool(
                "coder_send_task_input",
                "Send input to a task's agent. If the agent is busy, the input is queued until it is idle.",
                {
                    "task_id": TASK_ID,
                    "input": Argument("The text to send.", required=True),
                    "interrupt": Argument(
                        "true: interrupt an agent that is working, and send this before all that is queued.",
                        choices=("true", "false"),
                    ),
                },
                self.send_task_input,
            ),
            Tool(
                "answer_task_request",
                "Answer what the agent of a task asks people for: an approval or a question. The first answer counts."
                " If it is not clear which request or option is meant, nothing is answered and they are listed.",
                {
                    "task_id": TASK_ID,
                    "request_id": Argument("The id of the request; not needed if only one is open."),
                    "option": Argument("The id or label of the option, unless the request has none."),
                    "text": Argument("The answer to a question without options, or what to say with the option."),
                },
                self.answer_task_request,
            ),
            Tool(
                "interrupt_task",
                "Interrupt the agent of a task: end what it does now. Refused if the agent is not working.",
                {"task_id": TASK_ID},
                self.interrupt_task,
            ),
            Tool(
                "coder_delete_task",
                "Delete a task with its workspace; files that the agent created there are lost.",
                {"task_id": TASK_ID},
                self.delete_task,
            ),
        ]

    def list_templates(self) -> list[Document]:
        """Return the templates of the user's organizations, as many as the server lists."""
        templates = self._client.request("GET", "templates").body
        return [{name: template.get(name) for name in TEMPLATE_FIELDS} for template in templates]

    def create_task(
        self,
        input: str,  # noqa: A002 - the name is the contract
        template_version_id: str,
        template_version_preset_id: str,
        user: str,
    ) -> Document:
        """Create a task and return its document."""
        body = {"input": input, "template_version_id": template_version_id}
        if template_version_preset_id:
            body["template_version_preset_id"] = template_version_preset_id
        task: Document = tasks.change(self._client, "POST", "tasks", user or "me", body=body).body
        return task

    def list_tasks(self, status: str, user: str) -> Document:
        """Return up to 100 tasks, newest first."""
        terms = {"owner": user or "me", **({"status": status} if status else {})}
        return {"tasks": list(tasks.list_tasks(self._client, terms, MAX_LISTED))}

    def get_task_status(self, task_id: str) -> Document:
        """Return a task's status and its agent's state, and whether the agent is there at all."""
        document = tasks.show(self._client, _task_reference(task_id))
        agent = {name: document.get(name) for name in AGENT_FIELDS}
        return {"status": document["status"], "state": document["current_state"], **agent}

    def get_task_logs(self, task_id: str) -> Document:
        """Return the conversation with a task's agent."""
        logs: Document = self._client.request("GET", *tasks.path_of(_task_reference(task_id)), "logs").body
        return logs

    def send_task_input(self, task_id: str, input: str, interrupt: str) -> Document:  # noqa: A002 - as above
        """Send an input, and return whether it waits."""
        path = tasks.path_of(_task_reference(task_id))
        body: Document = {"input": input, **({"interrupt": True} if interrupt == "true" else {})}
        response = tasks.change(self._client, "POST", *path, "send", body=body)
        if "x-taskherd-answered" in response.headers:
            return {"message": "Input sent to task: it answered what the agent asked."}
        queued = response.headers.get("x-taskherd-queued") == "true"
        return {
            "message": "Input queued: it waits until the agent is idle."
            if queued
            else "Input sent to task successfully."
        }

    def answer_task_request(self, task_id: str, request_id: str, option: str, text: str) -> Document:
        """Answer an open request of a task's agent."""
        task = _task_reference(task_id)
        asked = agent_requests.open_of(self._client, task)
        chosen, body = agent_requests.choose_named(asked, request_id, option, text)
        agent_requests.answer(self._client, task, chosen, body)
        return {"message": "Answered.", "request_id": chosen["id"], "title": chosen["title"]}

    def interrupt_task(self, task_id: str) -> Document:
        """Interrupt the agent of a task."""
        response = tasks.change(self._client, "POST", *tasks.path_of(_task_reference(task_id)), "interrupt")
        return {"message": "The agent is being interrupted.", "interrupt_id": response.body["interrupt_id"]}

    def delete_task(self, task_id: str) -> Document:
        """Delete a task."""
        tasks.change(self._client, "DELETE", *tasks.path_of(_task_reference(task_id)))
        return {"message": "Task deleted successfully"}


def available(environ: Mapping[str, str]) -> list[Tool]:
    """Return the agent's tools if there is an agent token, and the user's tools if there is a user's.

    Raise ``ClientError`` if there is no token, or no valid URL for a token.
    """
    agent_token, user_token = _first_set(environ, AGENT_TOKEN), _first_set(environ, USER_TOKEN)
    found: list[Tool] = []
    if agent_token:
        slug = environ.get("CODER_MCP_APP_STATUS_SLUG", "")
        found += AgentTools(_client(environ, AGENT_URL, agent_token), slug).tools()
    if user_token:
        found += UserTools(_client(environ, USER_URL, user_token)).tools()
    if not found:
        advice = f"set {TOKEN} and {URL}; inside a task, the runner sets {AGENT_TOKEN[0]}"
        raise ClientError(ExitCode.USAGE, "no token is set, so there are no tools to offer", advice)
    return found


def _task_reference(task_id: str) -> str:
    """Return a task reference for the API: without the agent name that Coder's tools accept, ``/`` for ``--``."""
    owner, slash, name = task_id.strip().replace("--", "/").rpartition("/")
    return f"{owner}{slash}{name.partition('.')[0]}"


def _first_set(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environ[name].strip() for name in names if environ.get(name)), "")


def _client(environ: Mapping[str, str], names: tuple[str, ...], token: str) -> Client:
    name = next((each for each in names if environ.get(each)), names[0])
    return Client(http.parse_url(name, environ.get(name, "")), token)
