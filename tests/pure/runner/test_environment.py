"""The command line and environment of an agent."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from taskherd.errors import Malformed
from taskherd.messages.work import WorkRequestOwner, WorkRequestPreset, WorkspaceStart
from taskherd.runner import template
from taskherd.runner.workspaces import environment
from taskherd.runner.workspaces.environment import MAX_ARGUMENT, LaunchPaths

TASK = uuid.UUID("00000000-0000-4000-8000-00000000000e")
PATHS = LaunchPaths(Path("/t/work"), Path("/t/prompt.txt"), "http://api.example", None)
WITH_PORT = LaunchPaths(Path("/t/work"), Path("/t/prompt.txt"), "http://api.example", 4567, session="s-1")


def start(prompt: str = "Fix it", **parameters: object) -> WorkspaceStart:
    """Return a start of build 3, with a preset if it has parameters."""
    preset = WorkRequestPreset(id=TASK, name="large", parameters=parameters) if parameters else None
    return WorkspaceStart(
        request_id=TASK,
        attempt=1,
        task_id=TASK,
        task_name="fix-it",
        owner=WorkRequestOwner(id=TASK, username="alice"),
        build_number=3,
        build_id=TASK,
        template_version_id=TASK,
        run={},
        prompt=prompt,
        preset=preset,
        agent_token="secret",
    )


def command(*arguments: str, request: WorkspaceStart | None = None, paths: LaunchPaths = PATHS) -> list[str]:
    """Return the command line of an agent whose template has these arguments."""
    return environment.command(template.parse({"command": [*arguments]}), request or start(), paths)


def variables(
    request: WorkspaceStart, paths: LaunchPaths = PATHS, inherited: dict[str, str] | None = None, **env: Any
) -> dict[str, str]:
    """Return the environment of an agent whose template has this ``env``."""
    return environment.variables(template.parse({"command": ["a"], "env": env}), request, paths, inherited or {})


def test_placeholders_are_replaced_once() -> None:
    """What a value contains is not looked at again, and NUL, which no argument can contain, is left out."""
    request = start("say {task_id}\0 now", **{"model-name": 7, "text": "{prompt}\0"})
    assert command(
        "{prompt}", "--{parameter.model-name}-{parameter.text}", "{task_id}/{task_name}", "{prompt_file}", "{other}",
        request=request,
    ) == ["say {task_id} now", "--7-{prompt}", f"{TASK}/fix-it", "/t/prompt.txt", "{other}"]  # fmt: skip


def test_an_agent_may_be_run_by_the_python_of_its_runner() -> None:
    """Whatever PATH it inherits; a variable may lead to it, too."""
    assert command("{runner_python}", "-m", "taskherd") == [sys.executable, "-m", "taskherd"]
    given = variables(start(), inherited={"PATH": "/bin"}, inherit=["PATH"], set={"PYTHON": "{runner_python}"})
    assert (given["PYTHON"], given["PATH"]) == (sys.executable, "/bin")


def test_port_and_session_are_empty_if_there_is_none() -> None:
    """An agent that serves no AgentAPI has no port, and one that begins has no session."""
    assert command("a", "[{port}]", "[{session}]") == ["a", "[]", "[]"]
    assert command("a", "[{port}]", "[{session}]", paths=WITH_PORT) == ["a", "[4567]", "[s-1]"]


@pytest.mark.parametrize("request_", [start(), start(other="x")], ids=["no preset", "another parameter"])
def test_a_parameter_that_the_preset_lacks_fails_the_build(request_: WorkspaceStart) -> None:
    """The author of the template is told which one."""
    with pytest.raises(Malformed, match=r"it uses \{parameter\.model\}, but the task's preset has no such parameter"):
        command("a", "{parameter.model}", request=request_)


@pytest.mark.parametrize("letter", ["x", "é"])
def test_the_longest_argument(letter: str) -> None:
    """Linux takes 131,071 bytes; a longer prompt has to be read from its file."""
    room = MAX_ARGUMENT // len(letter.encode())
    assert MAX_ARGUMENT == 131_071
    assert command("a", "{prompt}", request=start(letter * room)) == ["a", letter * room]
    with pytest.raises(Malformed, match=r"an argument is longer than 131071 bytes; use \{prompt_file\} instead"):
        command("a", "{prompt}", request=start(letter * room + "é"))


def test_the_working_directory_is_below_that_of_the_task() -> None:
    """Unless the template names one of the machine."""
    for given, expected in ((".", "/t/work"), ("repo/src", "/t/work/repo/src"), ("/srv", "/srv")):
        run = template.parse({"command": ["a"], "workdir": given})
        assert environment.workdir(run, PATHS) == Path(expected)


def test_only_listed_variables_are_inherited() -> None:
    """Of the runner's variables an agent has those that the template lists, and no secret of the runner."""
    inherited = {"PATH": "/bin", "USER": "runner", "HOME": "/root", "TASKHERD_AMQP_URL": "amqp://secret"}
    found = variables(start(), inherited=inherited)
    assert {name: found[name] for name in ("PATH", "USER", "HOME")} == {
        "PATH": "/bin",
        "USER": "runner",
        "HOME": "/root",
    }
    assert "TASKHERD_AMQP_URL" not in found
    assert "LANG" not in found
    chosen = variables(start(), inherited=inherited, inherit=["PATH"], set={"EDITOR": "vi {task_name}"})
    assert (chosen["PATH"], chosen["EDITOR"]) == ("/bin", "vi fix-it")
    assert not {"USER", "HOME"} & chosen.keys()


def test_an_agent_of_another_user_has_its_own_home() -> None:
    """It is not called by the runner's name, and has a folder for temporary files; the template may say otherwise."""
    paths = LaunchPaths(PATHS.work, PATHS.prompt_file, PATHS.api_url, None, home=Path("/t/home"), tmp=Path("/t/tmp"))
    inherited = {"USER": "runner", "HOME": "/root"}
    found = variables(start(), paths, inherited)
    assert (found["HOME"], found["TMPDIR"], "USER" in found) == ("/t/home", "/t/tmp", False)
    assert variables(start(), paths, {})["HOME"] == "/t/home"
    assert variables(start(), paths, inherited, set={"HOME": "/elsewhere"})["HOME"] == "/elsewhere"
    assert "TMPDIR" not in variables(start(), PATHS, inherited)


def test_every_agent_knows_its_task() -> None:
    """The task's variables have taskherd's names and Coder's; those of a port only if there is one."""
    found = variables(start("Fix\0 it", **{"model-name": "large", "n": 2}))
    task = {
        "TASKHERD_TASK_ID": str(TASK),
        "TASKHERD_TASK_NAME": "fix-it",
        "TASKHERD_BUILD_NUMBER": "3",
        "TASKHERD_OWNER": "alice",
        "TASKHERD_PROMPT": "Fix it",
        "TASKHERD_PROMPT_FILE": "/t/prompt.txt",
        "TASKHERD_AGENT_TOKEN": "secret",
        "TASKHERD_API_URL": "http://api.example",
        "CODER": "true",
        "CODER_URL": "http://api.example",
        "CODER_AGENT_URL": "http://api.example",
        "CODER_AGENT_TOKEN": "secret",
        "CODER_TASK_ID": str(TASK),
        "CODER_TASK_PROMPT": "Fix it",
        "CODER_WORKSPACE_NAME": "fix-it",
        "CODER_WORKSPACE_OWNER_NAME": "alice",
        "CODER_MCP_APP_STATUS_SLUG": "agent",
    }
    assert found == {**task, "TASKHERD_PARAMETER_MODEL_NAME": "large", "TASKHERD_PARAMETER_N": "2"}
    assert variables(start("Fix it"), WITH_PORT) == {
        **task,
        "TASKHERD_AGENT_PORT": "4567",
        "AGENTAPI_PORT": "4567",
        "CODER_MCP_AI_AGENTAPI_URL": "http://127.0.0.1:4567",
    }


def test_a_variable_that_is_too_long_is_left_out() -> None:
    """The agent starts nevertheless: a long prompt is in its file."""
    assert variables(start("p" * MAX_ARGUMENT))["TASKHERD_PROMPT"] == "p" * MAX_ARGUMENT
    assert not {"TASKHERD_PROMPT", "CODER_TASK_PROMPT"} & variables(start("p" * (MAX_ARGUMENT + 1))).keys()
