"""The compose file as text: what can be checked of it without Docker."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from taskherd.runner import privileges
from taskherd.settings.isolation import parse_uids

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
PROCESSES = ("migrate", "worker", "api", "runner")


def test_every_port_of_the_machine_can_be_chosen() -> None:
    """Address and port come from variables, which docs/operations.md names; the default address is loopback."""
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) == 3
    for port in published:
        match = re.fullmatch(r"\$\{BIND_ADDRESS:-127\.0\.0\.1\}:\$\{([A-Z]+_PORT):-(\d+)\}:\2", port)
        assert match is not None, port
        assert f"`{match[1]}` ({match[2]})" in OPERATIONS


def test_all_processes_read_the_file_for_settings_and_tracing() -> None:
    """``compose/taskherd.env``, which need not exist, reaches every process, as does what the service itself sets."""
    for name in PROCESSES:
        assert SERVICES[name]["env_file"] == [{"path": "./compose/taskherd.env", "required": False}], name


def test_agents_are_users_of_their_own_who_cannot_read_the_runners_secret(tmp_path: Path) -> None:
    """The runner is root with the capabilities that this takes, can gain none, and its secret is closed to others."""
    runner = SERVICES["runner"]
    assert runner["user"] == "0:0"
    assert runner["cap_drop"] == ["ALL"]
    assert runner["cap_add"] == [*sorted(privileges.REQUIRED.values()), "SYS_PTRACE"]
    assert runner["security_opt"] == ["no-new-privileges:true"]
    assert runner["read_only"] is True
    first, last = parse_uids(runner["environment"]["TASKHERD_RUNNER_AGENT_UIDS"]) or (0, 0)
    assert last - first > 60_000
    assert runner["secrets"] == ["runner_amqp_url"]
    assert runner["environment"]["TASKHERD_AMQP_URL_FILE"] == "/run/secrets/runner_amqp_url"
    script = shutil.copy(ROOT / "deploy" / "compose" / "secrets.sh", tmp_path)
    for _ in range(2):
        subprocess.run(["sh", script], check=True)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "secrets").iterdir()}
    assert modes.pop("runner_amqp_url") == 0o600
    assert set(modes.values()) == {0o644}
    for name, service in SERVICES.items():
        assert name == "runner" or ("user" not in service and "cap_add" not in service), name


def test_the_documented_commands_name_services_that_have_the_database() -> None:
    """The directory and tokens are managed in a service that has the URL of the database, with the file on stdin."""
    commands = re.findall(r"compose\.yaml exec -T (\w+) taskherd (directory apply|token create)(.*)", OPERATIONS)
    assert {command for _, command, _ in commands} == {"directory apply", "token create"}
    for service, command, rest in commands:
        assert "TASKHERD_DATABASE_URL_FILE" in SERVICES[service]["environment"]
        assert command != "directory apply" or rest.rstrip().endswith("- < directory.yaml")
