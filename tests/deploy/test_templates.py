"""What the start scripts of ``deploy/templates`` do before they start an agent; the programs around them are stubs."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from taskherd.directory_file.parse import parse
from taskherd.runner import template
from tests.harness.templates import EXAMPLE, TEMPLATES, shipped_run

NAMES = sorted(path.name for path in TEMPLATES.iterdir())
KEY = "sk-of-the-test-0123456789-0123456789"
PROGRAMS = {
    "aider.yaml": "aider",
    "claude-code.yaml": "claude-agent-acp",
    "codex-exec.yaml": "codex",
    "codex.yaml": "codex-acp",
    "gemini.yaml": "gemini",
    "goose.yaml": "goose",
    "mini-swe-agent.yaml": "mini",
    "opencode.yaml": "opencode",
    "openhands.yaml": "openhands",
}
"""The program of each template whose program is not ``claude``."""
KEYS = {
    "aider.yaml": "AIDER_MODEL",
    "codex-exec.yaml": "OPENAI_API_KEY",
    "codex.yaml": "OPENAI_API_KEY",
    "gemini.yaml": "GEMINI_API_KEY",
    "goose.yaml": "GOOSE_PROVIDER",
    "mini-swe-agent.yaml": "MSWEA_MODEL_NAME",
    "opencode.yaml": "OPENAI_API_KEY",
    "openhands.yaml": "LLM_API_KEY",
}
"""The variable that each template needs whose variable is not ``ANTHROPIC_API_KEY``."""
ALSO_NEEDED = {"GOOSE_MODEL": "m", "LLM_MODEL": "m"}
EXPECTED = {
    *("claude-code.yaml", "codex.yaml", "gemini.yaml", "opencode.yaml"),
    *("goose.yaml", "openhands.yaml", "mini-swe-agent.yaml", "aider.yaml"),
}
"""Where a user looks for an agent, by the agent's own name."""


def start(
    tmp_path: Path, name: str, user_id: int = 1000, without: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a template's command in ``tmp_path/it's "work"/project``, with stubs that print their arguments and HOME."""
    project = tmp_path / 'it\'s "work"' / "project"
    stubs = tmp_path / "bin"
    for folder in (project, stubs):
        folder.mkdir(parents=True, exist_ok=True)
    print_arguments = 'printf "%s\\n" "$(basename "$0")" "$@" "$HOME"'
    scripts = dict.fromkeys(("agentapi", "claude", *PROGRAMS.values()), print_arguments) | {"id": f"echo {user_id}"}
    for program, script in scripts.items():
        (stubs / program).write_text(f"#!/bin/sh\n{script}\n")
        (stubs / program).chmod(0o755)
    if without:
        (stubs / without).unlink()
    prompt = tmp_path / "prompt"
    prompt.write_text("Do it")
    variables = {
        "PATH": f"{stubs}:{os.environ['PATH']}",
        KEYS.get(name, "ANTHROPIC_API_KEY"): KEY,
        "AGENTAPI_PORT": "3284",
        **ALSO_NEEDED,
        "TASKHERD_PROMPT_FILE": str(prompt),
    }
    command = ("/bin/sh", *template.parse(shipped_run(name)).command[1:])
    env = {**variables, **(environment or {})}
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False, timeout=30)


def test_each_agent_has_a_template_of_its_name() -> None:
    """An agent's template is found by the agent's name, and is called so; no two have an id in common."""
    entries = {name: yaml.safe_load((TEMPLATES / name).read_text())["templates"][0] for name in NAMES}
    assert entries.keys() >= EXPECTED
    assert {name: entry["name"] for name, entry in entries.items()} == {name: name[:-5] for name in NAMES}
    ids = [each["id"] for entry in entries.values() for each in (entry, *entry["versions"])]
    assert len(ids) == len(set(ids))


def test_all_shipped_templates_can_be_applied_together() -> None:
    """Put into the example one below the other, all of them form one valid directory."""
    entries = b"".join((TEMPLATES / name).read_bytes().split(b"templates:\n", 1)[1] for name in NAMES)
    assert len(parse(EXAMPLE.read_bytes() + entries).templates) == 2 + len(NAMES)


def test_the_example_runs_claude_as_the_complete_template_does() -> None:
    """The shipped example is valid, and its Claude Code is the complete template, not a part of it."""
    runs = {each.name: each.versions[0].run for each in parse(EXAMPLE.read_bytes()).templates}
    assert runs.keys() == {"claude", "counts"}
    assert runs["claude"] == shipped_run("claude-agentapi.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_a_template_is_valid_as_it_is(name: str) -> None:
    """Put into the example, below its templates, each shipped template can be applied."""
    entry = (TEMPLATES / name).read_text().split("templates:\n", 1)[1]
    assert len(parse(EXAMPLE.read_bytes() + entry.encode()).templates) == 3


@pytest.mark.parametrize("name", NAMES)
def test_it_refuses_what_cannot_work(tmp_path: Path, name: str) -> None:
    """As root, without a key or without a program it ends at once, with a status of its own and the reason."""
    as_root = start(tmp_path, name, user_id=0)
    key = KEYS.get(name, "ANTHROPIC_API_KEY")
    without_key = start(tmp_path, name, environment={key: ""})
    program = PROGRAMS.get(name, "claude")
    without_program = start(tmp_path, name, environment={"PATH": str(tmp_path / "bin")}, without=program)
    assert {ended.returncode for ended in (as_root, without_key, without_program)} == {78}
    assert "start the runner as another user" in as_root.stderr
    assert f"{key} is not set" in without_key.stderr
    assert f"{program} is not in the PATH" in without_program.stderr


def test_claude_behind_agentapi_has_a_home_of_its_own(tmp_path: Path) -> None:
    """Its files answer the dialogs of a first start, for this folder and this key, and only the user can read them."""
    ended = start(tmp_path, "claude-agentapi.yaml")
    work = tmp_path / 'it\'s "work"'
    arguments = ["agentapi", "server", "--type=claude", "--port=3284", "--", "claude", "--dangerously-skip-permissions"]
    assert ended.stdout.splitlines() == [*arguments, str(work / "home")], ended.stderr
    state = json.loads((work / "home/.claude.json").read_text())
    assert state["projects"] == {str(work / "project"): {"hasTrustDialogAccepted": True}}
    assert state["customApiKeyResponses"]["approved"] == [KEY[-20:]]
    assert json.loads((work / "home/.claude/settings.json").read_text())["skipDangerousModePermissionPrompt"]
    assert (work / "home/.claude.json").stat().st_mode & 0o077 == 0


def test_claude_behind_agentapi_continues(tmp_path: Path) -> None:
    """A later start continues the conversation of the earlier one, if there was one."""
    session = tmp_path / 'it\'s "work"' / "home/.claude/projects/p/session.jsonl"
    session.parent.mkdir(parents=True)
    session.write_text("{}\n")
    assert "--continue" in start(tmp_path, "claude-agentapi.yaml").stdout.splitlines()


def test_claude_as_stdio(tmp_path: Path) -> None:
    """It prints one answer, from a HOME of its own."""
    ended = start(tmp_path, "claude-stdio.yaml")
    home = str(tmp_path / 'it\'s "work"' / "home")
    assert ended.stdout.splitlines() == ["claude", "-p", "--dangerously-skip-permissions", home], ended.stderr


def test_claude_by_its_events(tmp_path: Path) -> None:
    """It speaks its own protocol, from a HOME of the task's own; a resume names the session to continue."""
    ended = start(tmp_path, "claude-stream.yaml")
    formats = ["--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]
    arguments = ["claude", "-p", *formats, "--dangerously-skip-permissions"]
    assert ended.stdout.splitlines() == [*arguments, str(tmp_path / 'it\'s "work"' / "home")], ended.stderr
    run = template.parse(shipped_run("claude-stream.yaml"))
    assert run.resume_command == (*run.command, "--resume", "{session}")


def test_codex_by_its_events(tmp_path: Path) -> None:
    """It reads its prompt from stdin, from a HOME of the task's own with the runner's configuration."""
    ended = start(tmp_path, "codex-exec.yaml", environment={"CODEX_CONFIG_TOML": 'model = "m"'})
    home = tmp_path / 'it\'s "work"' / "home"
    options = ["exec", "--json", "--skip-git-repo-check", "-c", 'sandbox_mode="workspace-write"']
    assert ended.stdout.splitlines() == ["codex", *options, "-", str(home)], ended.stderr
    assert (home / ".codex/config.toml").read_text() == 'model = "m"\n'
    run = template.parse(shipped_run("codex-exec.yaml"))
    assert run.resume_command == (*run.command[:-1], "resume", "{session}", "Go on.")
    assert run.stdin_kind == "prompt"


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:1/v1"])
def test_openhands_has_settings(tmp_path: Path, url: str) -> None:
    """Its settings, which only the user can read, have what the runner's environment says: model, key and address."""
    ended = start(tmp_path, "openhands.yaml", environment={"LLM_MODEL": 'a"b\\c', "LLM_BASE_URL": url})
    settings = tmp_path / 'it\'s "work"' / "home/.openhands/agent_settings.json"
    llm = json.loads(settings.read_text())["llm"]
    assert llm == {"usage_id": "agent", "model": 'a"b\\c', "base_url": url or None, "api_key": KEY}, ended.stderr
    assert settings.stat().st_mode & 0o077 == 0


def test_mini_swe_agent_says_how_it_ended(tmp_path: Path) -> None:
    """It is given the prompt as an argument; it has failed unless its own record says that it submitted its work."""
    home = tmp_path / 'it\'s "work"' / "home"
    ended = start(tmp_path, "mini-swe-agent.yaml")
    options = ["--yolo", "--exit-immediately", "--cost-limit", "3", "--output", f"{home}/trajectory.json"]
    assert ended.stdout.splitlines() == ["mini", *options, "--task", "Do it", str(home)], ended.stderr
    assert (ended.returncode, "gave up" in ended.stderr) == (1, True)
    (home / "trajectory.json").write_text('{"info": {"exit_status": "Submitted"}}')
    ended = start(tmp_path, "mini-swe-agent.yaml")
    assert (ended.returncode, "has submitted" in ended.stdout) == (0, True)


def test_aider_is_given_a_file(tmp_path: Path) -> None:
    """It reads its prompt from the task's file, and asks nothing."""
    ended = start(tmp_path, "aider.yaml")
    options = ["--yes-always", "--no-pretty", "--no-fancy-input", "--restore-chat-history"]
    home = str(tmp_path / 'it\'s "work"' / "home")
    expected = ["aider", *options, "--message-file", str(tmp_path / "prompt"), home]
    assert ended.stdout.splitlines() == expected, ended.stderr


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("claude-code.yaml", ["claude-agent-acp"]),
        ("codex.yaml", ["codex-acp"]),
        ("gemini.yaml", ["gemini", "--acp", "--model", "gemini-2.5-pro"]),
        ("goose.yaml", ["goose", "acp"]),
        ("opencode.yaml", ["opencode", "acp"]),
        ("openhands.yaml", ["openhands", "acp"]),
    ],
)
def test_an_agent_over_acp(tmp_path: Path, name: str, arguments: list[str]) -> None:
    """It speaks the protocol, from a HOME of the task's own, in which it keeps its sessions."""
    ended = start(tmp_path, name)
    assert ended.stdout.splitlines() == [*arguments, str(tmp_path / 'it\'s "work"' / "home")], ended.stderr


def test_claude_over_acp_asks(tmp_path: Path) -> None:
    """It asks for permission by the protocol; settings that are there already are left alone."""
    start(tmp_path, "claude-code.yaml")
    settings = tmp_path / 'it\'s "work"' / "home/.claude/settings.json"
    assert json.loads(settings.read_text()) == {"permissions": {"defaultMode": "default"}}
    settings.write_text("{}")
    start(tmp_path, "claude-code.yaml")
    assert settings.read_text() == "{}"


@pytest.mark.parametrize("name", NAMES)
def test_a_template_inherits_what_its_command_reads(name: str) -> None:
    """A variable with a default in the command is the runner's: not inherited, it would have the default always."""
    run = shipped_run(name)
    read = {variable for part in run["command"] for variable in re.findall(r"\$\{([A-Z_]+):", part)}
    assert read <= {*run["env"]["inherit"], *run["env"].get("set", {})}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_template_says_how_to_hold_its_agent_in(name: str) -> None:
    """Each says in words how the agent is isolated, with the program that must be visible then."""
    program = PROGRAMS.get(name, "claude")
    words = f"add `sandbox: bwrap`, and the folder of `{program}` to TASKHERD_RUNNER_SANDBOX_PATHS"
    assert words in (TEMPLATES / name).read_text()
