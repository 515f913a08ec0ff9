"""`taskherd task`: what people do with tasks, over the API at TASKHERD_URL, with the token in TASKHERD_TOKEN."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from taskherd.cli import output as task_output
from taskherd.cli.output import OutputFormat, OutputOption
from taskherd.client import http, tasks
from taskherd.client.errors import ClientError, ExitCode

CODES = (
    "Exit codes: 0 done, 1 the server is away or at fault, 2 wrong command line or environment, 3 the task failed, "
    "4 the token does not hold, 5 not found, 6 refused, 124 not in time, 130 Ctrl-C."
)


class ErrorHandlingGroup(TyperGroup):
    """Turns what went wrong into a message, what to do, and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except ClientError as error:
            typer.echo(f"taskherd: {task_output.printable(error.message)}", err=True)
            if error.advice:
                typer.echo(f"  {task_output.printable(error.advice)}", err=True)
            raise typer.Exit(error.code) from None
        except KeyboardInterrupt:
            typer.echo(err=True)
            raise typer.Exit(ExitCode.INTERRUPTED) from None


app = typer.Typer(
    cls=ErrorHandlingGroup,
    help="Create tasks, look at them, speak to their agents, wait for them; over the API.",
    epilog=CODES,
    no_args_is_help=True,
)


def _names(_ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the caller's tasks, for the shell's completion; none where the API can't be asked quickly."""
    try:
        found = http.from_environment().request("GET", "tasks", query={"q": "owner:me", "limit": "100"}, timeout=2).body
    except ClientError:
        return []
    return [each["name"] for each in found["tasks"] if each["name"].startswith(incomplete)]


Named = Annotated[
    str, typer.Argument(metavar="TASK", help="An id, a name, or owner/name.", autocompletion=_names, show_default=False)
]
Text = Annotated[str, typer.Argument(metavar="TEXT", help="What to say; - reads it from stdin.", show_default=False)]


def read(text: str) -> str:
    """What was given on the command line, or on stdin for `-`."""
    return sys.stdin.read() if text == "-" else text


@app.command(epilog=CODES)
def create(
    text: Text,
    *,
    template: Annotated[
        str | None, typer.Option("--template", help="Its name; needed where there are several.")
    ] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="The name of one of the template's presets.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Letters, digits and hyphens; else made up.")] = None,
    title: Annotated[str | None, typer.Option("--title", help="What people see; else made from the text.")] = None,
    owner: Annotated[str, typer.Option("--owner", help="Whose task it is.")] = "me",
    key: Annotated[str | None, typer.Option("--idempotency-key", help="The same again gives the same task.")] = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Create a task."""
    client = http.from_environment()
    version = tasks.template_version(client, template)
    body: dict[str, Any] = {"template_version_id": version, "input": read(text)}
    if preset:
        body["template_version_preset_id"] = tasks.preset(client, version, preset)
    if name:
        body["name"] = name
    if title:
        body["display_name"] = title
    _show(tasks.change(client, "POST", "tasks", owner, body=body, key=key).body, output)


@app.command("list", epilog=CODES)
def list_(
    *,
    owner: Annotated[str, typer.Option("--owner", help="Only those of this user.")] = "me",
    everybody: Annotated[bool, typer.Option("--all", help="All that you may see, whosever they are.")] = False,
    status: Annotated[
        str | None, typer.Option("--status", help="pending, initializing, active, paused, error or unknown.")
    ] = None,
    organization: Annotated[str | None, typer.Option("--organization", help="Only those of this one.")] = None,
    most: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest.")] = 100,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List tasks, newest first."""
    terms = {"owner": None if everybody else owner, "status": status, "organization": organization}
    found = list(tasks.list_tasks(http.from_environment(), {key: it for key, it in terms.items() if it}, most))
    if output is OutputFormat.JSON:
        task_output.document(found)
    else:
        task_output.tasks(found)


@app.command(epilog=CODES)
def show(task: Named, output: OutputOption = OutputFormat.TABLE) -> None:
    """Show a task."""
    _show(tasks.show(http.from_environment(), task), output)


@app.command(epilog=CODES)
def logs(task: Named, output: OutputOption = OutputFormat.TABLE) -> None:
    """Show the conversation with a task's agent."""
    told = http.from_environment().request("GET", *tasks.path_of(task), "logs").body
    if output is OutputFormat.JSON:
        task_output.document(told)
        return
    for entry in told["logs"]:
        lines = [task_output.printable(line) for line in entry["content"].splitlines()]
        typer.echo(f"{entry['time'][11:19]} {'>' if entry['type'] == 'input' else ' '} " + "\n           ".join(lines))


@app.command(epilog=CODES)
def send(task: Named, text: Text, output: OutputOption = OutputFormat.TABLE) -> None:
    """Say something to a task's agent; while it is busy, that waits in the task's inbox."""
    told = tasks.change(http.from_environment(), "POST", *tasks.path_of(task), "send", body={"input": read(text)})
    queued = told.headers.get("x-taskherd-queued") == "true"
    if output is OutputFormat.JSON:
        task_output.document({"queued": queued})
    else:
        typer.echo("Queued until the agent is idle." if queued else "Sent.")


@app.command(epilog=CODES)
def pause(task: Named, output: OutputOption = OutputFormat.TABLE) -> None:
    """Stop a task's workspace."""
    _build(task, "pause", output)


@app.command(epilog=CODES)
def resume(task: Named, output: OutputOption = OutputFormat.TABLE) -> None:
    """Start a task's workspace again."""
    _build(task, "resume", output)


@app.command(epilog=CODES)
def delete(task: Named) -> None:
    """Delete a task and its workspace."""
    tasks.change(http.from_environment(), "DELETE", *tasks.path_of(task))


@app.command(epilog=CODES)
def explain(task: Named, output: OutputOption = OutputFormat.TABLE) -> None:
    """Say why a task is as it is, and what would change it."""
    told = http.from_environment().request("GET", *tasks.path_of(task), "explain").body
    if output is OutputFormat.JSON:
        task_output.document(told)
        return
    names = (("status", "status"), ("current_state", "state"), ("health", "agent"))
    task_output.fields(*((title, told[name]["because"]) for name, title in names))
    for title, waiting in (("inbox", told["inbox"]), ("requests", told["requests"])):
        for each in waiting:
            task_output.fields((title, ", ".join(f"{name} {it}" for name, it in each.items() if it is not None)))


def _build(task: str, what: str, output: OutputFormat) -> None:
    told = tasks.change(http.from_environment(), "POST", *tasks.path_of(task), what).body
    if output is OutputFormat.JSON:
        task_output.document(told)
    else:
        build = told["workspace_build"]
        typer.echo(f"Build {build['build_number']} ({build['transition']}) was asked for; its id is {build['id']}.")


def _show(task: tasks.Task, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        task_output.document(task)
    else:
        task_output.task(task)
