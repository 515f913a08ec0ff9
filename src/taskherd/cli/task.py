"""``taskherd task``: create, inspect and control tasks through the API.

The server is read from ``TASKHERD_URL``, the caller's token from ``TASKHERD_TOKEN``.
"""

from __future__ import annotations

from typing import Annotated, Any
from uuid import uuid4

import typer
from typer.core import TyperGroup

from taskherd.cli import bulk, task_output, text_files
from taskherd.cli.output import OutputFormat, OutputOption, document, moment, print_failure
from taskherd.cli.tables import fields
from taskherd.client import http, tasks
from taskherd.client.errors import ClientError, ExitCode

EXIT_CODES = (
    "Exit codes: 0 success, 1 server unreachable or failed, 2 invalid command line or environment, "
    "3 task failed or agent ended, "
    "4 token invalid, 5 not found, 6 request refused, 124 timed out, 130 Ctrl-C."
)


class ErrorHandlingGroup(TyperGroup):
    """A command group that turns ``ClientError`` into a message, advice and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit with the error's code if the client fails, and with 130 if interrupted."""
        try:
            return super().invoke(ctx)
        except ClientError as error:
            print_failure(error)
            raise typer.Exit(error.code) from None
        except KeyboardInterrupt:
            typer.echo(err=True)
            raise typer.Exit(ExitCode.INTERRUPTED) from None


app = typer.Typer(
    cls=ErrorHandlingGroup,
    help="Create, inspect and control tasks, through the API at TASKHERD_URL with the token in TASKHERD_TOKEN.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
)


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ClientError(ExitCode.USAGE, f"invalid label {text!r}", "expected KEY=VALUE")
    return key, value


def complete_names(_ctx: typer.Context, incomplete: str) -> list[str]:
    """Return names of the caller's tasks for shell completion; none if the API does not answer within 2 seconds."""
    query = {"q": "owner:me", "limit": "100"}
    try:
        body = http.from_environment().request("GET", "tasks", query=query, timeout=2).body
    except ClientError:
        return []
    return [each["name"] for each in body["tasks"] if each["name"].startswith(incomplete)]


TaskArgument = Annotated[
    str,
    typer.Argument(
        metavar="TASK", help="Id, name, or owner/name of the task.", autocompletion=complete_names, show_default=False
    ),
]
PromptArgument = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="Prompt for the agent; - reads it from stdin.", show_default=False),
]
TextArgument = Annotated[
    str | None, typer.Argument(metavar="TEXT", help="Text to send; - reads it from stdin.", show_default=False)
]


def read(text: str) -> str:
    """Return ``text``, or the content of stdin if it is ``-``."""
    return text_files.read(text) if text == "-" else text


@app.command(epilog=EXIT_CODES)
def create(
    prompt: PromptArgument = None,
    *,
    file: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Create a task for each line of a file: a prompt, or a JSON object with input, name, display_name, "
            "owner or labels; - reads stdin.",
        ),
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", help="Name of the template; optional if there is only one.")
    ] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="Name of one of the template's presets.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the task: letters, digits and hyphens. Default: generated.")
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", help="Title to display. Default: derived from the prompt.")
    ] = None,
    owner: Annotated[str, typer.Option("--owner", help="User who will own the task.")] = "me",
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="KEY=VALUE", help="Label, such as repo=acme/app; may be repeated."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key",
            callback=bulk.check_key,
            help="Repeating the command with the same key returns the task it created.",
        ),
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Create a task: start an agent with a prompt. Or create one for each line of a file.

    Each task of a file is judged by itself; the exit code is that of the first one that is refused.
    """
    if (prompt is None) == (file is None):
        raise ClientError(ExitCode.USAGE, "give a prompt, or a file of prompts with --from")
    client = http.from_environment()
    version = tasks.template_version(client, template)
    body: dict[str, Any] = {"template_version_id": version}
    if label:
        body["labels"] = dict(map(_label, label))
    if preset:
        body["template_version_preset_id"] = tasks.preset(client, version, preset)
    if file is not None:
        if name or title:
            raise ClientError(
                ExitCode.USAGE, "--name and --title are for one task", "set them in the lines of the file"
            )
        bulk.create_all(client, bulk.read_entries(file, {**body, "owner": owner}), key, output)
        return
    body["input"] = read(prompt or "")
    if name:
        body["name"] = name
    if title:
        body["display_name"] = title
    key = key or str(uuid4())
    with bulk.advise_repeat(bulk.repeat_advice(key)):
        created = tasks.change(client, "POST", "tasks", owner, body=body, key=key).body
    _print_task(client, created, output)


@app.command(epilog=EXIT_CODES)
def show(task: TaskArgument, output: OutputOption = OutputFormat.TABLE) -> None:
    """Show a task, how its agent ended, and the command that starts it again."""
    client = http.from_environment()
    shown = tasks.show(client, task)
    if output is OutputFormat.JSON:
        document(shown)
    else:
        following = task_output.next_step(tasks.explain(client, _id_of(shown)), task)
        task_output.task(shown, page=_page_of(client, shown), following=following)


@app.command(epilog=EXIT_CODES)
def send(
    task: TaskArgument,
    text: TextArgument = None,
    *,
    interrupt_first: Annotated[
        bool,
        typer.Option(
            "--interrupt", help="Interrupt an agent that works; then this goes before all that waits in the inbox."
        ),
    ] = False,
    query: bulk.QueryOption = None,
    dry_run: bulk.DryRunOption = False,
    yes: bulk.YesOption = False,
    key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key",
            callback=bulk.check_key,
            help="Repeating the command with the same key sends nothing twice.",
        ),
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Send input to a task's agent; it is queued while the agent is busy. With --query, give only the text."""
    if query is not None:
        if interrupt_first:
            raise ClientError(ExitCode.USAGE, "--interrupt is for one task", "interrupt the others first")
        bulk.one_of([] if text is None else [task], query)
        bulk.act("send", query, text=read(task), key=key, dry_run=dry_run, yes=yes, output=output)
        return
    if text is None:
        raise ClientError(ExitCode.USAGE, "give the task and the text to send")
    path = tasks.path_of(task)
    body = {"input": read(text), **({"interrupt": True} if interrupt_first else {})}
    client = http.from_environment()
    key = key or str(uuid4())
    with bulk.advise_repeat(bulk.repeat_advice(key, "what was sent is not sent again")):
        response = tasks.change(client, "POST", *path, "send", body=body, key=key)
    queued, answered = response.headers.get("x-taskherd-queued") == "true", response.headers.get("x-taskherd-answered")
    if output is OutputFormat.JSON:
        document({"queued": queued, **({"answered": answered} if answered else {})})
    elif answered:
        typer.echo("Sent: it answered what the agent asked.")
    else:
        typer.echo("Queued until the agent is idle." if queued else "Sent.")


@app.command(epilog=EXIT_CODES)
def explain(task: TaskArgument, output: OutputOption = OutputFormat.TABLE) -> None:
    """Explain a task's status, who acted last, and what would change it."""
    body = tasks.explain(http.from_environment(), task)
    if output is OutputFormat.JSON:
        document(body)
        return
    names = (("status", "status"), ("current_state", "state"), ("health", "agent"))
    command = body["last_command"]
    fields(
        *((title, body[name]["because"]) for name, title in names),
        ("stalled", body["stalled_since"]["because"] if body["stalled_since"]["value"] else ""),
        ("interrupt", "" if body["interrupt"]["rule"] == "interrupt.none" else body["interrupt"]["because"]),
        ("waiting", body["waiting"]["because"] if body["waiting"]["rule"] != "request.none" else ""),
        ("last", f"{command['words']}, {moment(command['time'])} UTC" if command else ""),
        *(
            (title, ", ".join(f"{key} {value}" for key, value in item.items() if value is not None))
            for title, items in (("inbox", body["inbox"]), ("requests", body["requests"]))
            for item in items
        ),
        ("next", task_output.next_step(body, task)),
    )


def _id_of(task: tasks.Task) -> str:
    return f"{task['owner_id']}/{task['id']}"


def _page_of(client: http.Client, task: tasks.Task) -> str:
    return client.page("tasks", task["owner_name"], task["name"])


def _print_task(client: http.Client, task: tasks.Task, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        document(task)
    else:
        task_output.task(task, page=_page_of(client, task))
