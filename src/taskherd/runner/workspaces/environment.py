"""The command line and environment of an agent: what the template says, filled in, and nothing of the runner's own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from taskherd.errors import Malformed
from taskherd.runner.reporter import APP_SLUG

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.messages.work import WorkspaceStart
    from taskherd.runner.template import Run

MAX_WORD = 128 * 1024 - 1
"""Bytes of one word of a command line or environment; Linux takes no more (MAX_ARG_STRLEN, execve(2))."""
_BLANK = re.compile(r"\{(prompt|prompt_file|port|task_id|task_name|parameter\.[A-Za-z0-9_.-]+)\}")
_NO_VARIABLE = re.compile(r"[^A-Za-z0-9_]")


@dataclass(frozen=True, slots=True)
class LaunchPaths:
    """Where the agent will be, as it is told."""

    work: Path
    prompt_file: Path
    api_url: str
    port: int | None


def command(run: Run, request: WorkspaceStart, paths: LaunchPaths) -> list[str]:
    """The words to run, with `{prompt}`, `{port}` and the like filled in; raises `Malformed` for what can't be."""
    blanks = _blanks(request, paths)
    words = [_filled(word, blanks) for word in run.command]
    for word in words:
        if len(word.encode()) > MAX_WORD:
            raise Malformed(
                "invalid_run", f"a word of the command is longer than {MAX_WORD} bytes: use {{prompt_file}}"
            )
    return words


def workdir(run: Run, paths: LaunchPaths) -> Path:
    """Where it is run, inside the task's own folder unless the template gives another as an absolute path."""
    return paths.work / run.workdir


def variables(run: Run, request: WorkspaceStart, paths: LaunchPaths, own: Mapping[str, str]) -> dict[str, str]:
    """The agent's environment; `own` is the runner's, of which only what the template lists is passed on."""
    blanks = _blanks(request, paths)
    chosen = {name: own[name] for name in run.env.inherit if name in own}
    chosen |= {name: _filled(value, blanks) for name, value in run.env.set.items()}
    chosen |= _task_variables(request, paths)
    return {name: value.replace("\0", "") for name, value in chosen.items() if len(value.encode()) <= MAX_WORD}


def _task_variables(request: WorkspaceStart, paths: LaunchPaths) -> dict[str, str]:
    """What every agent is told, under our names and under those that Coder's own agents look for."""
    given = {
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
        given |= {
            "TASKHERD_AGENT_PORT": str(paths.port),
            "AGENTAPI_PORT": str(paths.port),
            "CODER_MCP_AI_AGENTAPI_URL": f"http://127.0.0.1:{paths.port}",
        }
    parameters = request.preset.parameters if request.preset else {}
    return given | {f"TASKHERD_PARAMETER_{_variable(name)}": str(value) for name, value in parameters.items()}


def _blanks(request: WorkspaceStart, paths: LaunchPaths) -> dict[str, str]:
    parameters = request.preset.parameters if request.preset else {}
    return {
        "prompt": request.prompt.replace("\0", ""),
        "prompt_file": str(paths.prompt_file),
        "port": str(paths.port or ""),
        "task_id": str(request.task_id),
        "task_name": request.task_name,
        **{f"parameter.{name}": str(value).replace("\0", "") for name, value in parameters.items()},
    }


def _filled(word: str, blanks: Mapping[str, str]) -> str:
    """The word with its blanks filled, in one pass: what is filled in is not looked at again."""

    def fill(blank: re.Match[str]) -> str:
        if blank[1] not in blanks:
            raise Malformed("invalid_run", f"{{{blank[1]}}} is used, and the task's preset has no such parameter")
        return blanks[blank[1]]

    return _BLANK.sub(fill, word)


def _variable(name: str) -> str:
    return _NO_VARIABLE.sub("_", name).upper()
