"""The command line and environment of an agent, from the template and the request.

Nothing else is inherited from the runner.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from taskherd.runner.reporter import APP_SLUG
from taskherd.runner.template import invalid_run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.directory_file.run import RunConfig
    from taskherd.messages.work import WorkspaceStart

MAX_ARGUMENT = 128 * 1024 - 1
"""Maximum size in bytes of one argument or environment string on Linux (MAX_ARG_STRLEN, execve(2))."""
_PLACEHOLDER = re.compile(
    r"\{(prompt|prompt_file|port|session|task_id|task_name|runner_python|parameter\.[A-Za-z0-9_.-]+)\}"
)
_NOT_IN_VARIABLES = re.compile(r"[^A-Za-z0-9_]")


@dataclass(frozen=True, slots=True)
class LaunchPaths:
    """The paths, API address and port that are passed to an agent."""

    work: Path
    prompt_file: Path
    api_url: str
    port: int | None
    home: Path | None = None
    """HOME of an agent that cannot use the runner's: one in a sandbox or with a user of its own."""
    tmp: Path | None = None
    """Its folder for temporary files, as it sees it."""
    session: str = ""
    """The session of an earlier agent, to be continued."""


def command(run: RunConfig, request: WorkspaceStart, paths: LaunchPaths) -> list[str]:
    """Return the command with its placeholders substituted. Raise ``Malformed`` if that is not possible."""
    values = _placeholders(request, paths)
    arguments = [_substitute(text, values) for text in run.command]
    if any(len(argument.encode()) > MAX_ARGUMENT for argument in arguments):
        raise invalid_run(
            f"command: an argument is longer than {MAX_ARGUMENT} bytes; use {{prompt_file}} instead of {{prompt}}"
        )
    return arguments


def workdir(run: RunConfig, paths: LaunchPaths) -> Path:
    """Return the working directory, relative to the task's ``work`` folder unless the template's path is absolute."""
    return paths.work / run.workdir


def variables(
    run: RunConfig, request: WorkspaceStart, paths: LaunchPaths, inherited: Mapping[str, str]
) -> dict[str, str]:
    """Return the agent's environment; of the runner's (``inherited``) only the variables that the template lists."""
    values = _placeholders(request, paths)
    environ = {name: inherited[name] for name in run.env.inherit if name in inherited}
    if paths.home is not None:
        environ.pop("USER", None)
        environ["HOME"] = str(paths.home)
    if paths.tmp is not None:
        environ["TMPDIR"] = str(paths.tmp)
    environ |= {name: _substitute(value, values) for name, value in run.env.set.items()}
    environ |= _task_variables(request, paths)
    return {name: value.replace("\0", "") for name, value in environ.items() if len(value.encode()) <= MAX_ARGUMENT}


def _task_variables(request: WorkspaceStart, paths: LaunchPaths) -> dict[str, str]:
    """Return the variables that every agent gets, under taskherd's names and under those of Coder."""
    task_variables = {
        "TASKHERD_TASK_ID": str(request.task_id),
        "TASKHERD_TASK_NAME": request.task_name,
        "TASKHERD_BUILD_NUMBER": str(request.build_number),
        "TASKHERD_OWNER": request.owner.username,
        "TASKHERD_PROMPT": request.prompt,
        "TASKHERD_PROMPT_FILE": str(paths.prompt_file),
        "TASKHERD_AGENT_TOKEN": request.agent_token,
        "TASKHERD_API_URL": paths.api_url,
        "CODER": "true",
        "CODER_URL": paths.api_url,
        "CODER_AGENT_URL": paths.api_url,
        "CODER_AGENT_TOKEN": request.agent_token,
        "CODER_TASK_ID": str(request.task_id),
        "CODER_TASK_PROMPT": request.prompt,
        "CODER_WORKSPACE_NAME": request.task_name,
        "CODER_WORKSPACE_OWNER_NAME": request.owner.username,
        "CODER_MCP_APP_STATUS_SLUG": APP_SLUG,
    }
    if paths.port is not None:
        task_variables |= {
            "TASKHERD_AGENT_PORT": str(paths.port),
            "AGENTAPI_PORT": str(paths.port),
            "CODER_MCP_AI_AGENTAPI_URL": f"http://127.0.0.1:{paths.port}",
        }
    parameters = request.preset.parameters if request.preset else {}
    return task_variables | {
        f"TASKHERD_PARAMETER_{_variable_name(name)}": str(value) for name, value in parameters.items()
    }


def _placeholders(request: WorkspaceStart, paths: LaunchPaths) -> dict[str, str]:
    parameters = request.preset.parameters if request.preset else {}
    return {
        "prompt": request.prompt.replace("\0", ""),
        "prompt_file": str(paths.prompt_file),
        "port": str(paths.port or ""),
        "session": paths.session,
        "task_id": str(request.task_id),
        "task_name": request.task_name,
        "runner_python": sys.executable,
        **{f"parameter.{name}": str(value).replace("\0", "") for name, value in parameters.items()},
    }


def _substitute(text: str, values: Mapping[str, str]) -> str:
    """Return the text with its placeholders substituted once; placeholders in the values are left as they are."""

    def value_of(placeholder: re.Match[str]) -> str:
        name = placeholder[1]
        if name not in values:
            raise invalid_run(f"it uses {{{name}}}, but the task's preset has no such parameter")
        return values[name]

    return _PLACEHOLDER.sub(value_of, text)


def _variable_name(name: str) -> str:
    return _NOT_IN_VARIABLES.sub("_", name).upper()
