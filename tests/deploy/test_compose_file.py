"""The compose file and its secrets: what can be checked of them without Docker."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import pytest
import yaml
from aio_pika.exceptions import AMQPError

from taskherd.dev import rabbitmq
from taskherd.dev.sources import Missing
from taskherd.runner import privileges
from taskherd.settings import Settings
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
    assert modes.pop("runner_amqp_url") == modes.pop("runner_amqp_cluster_url") == 0o600
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


def test_each_process_has_a_user_of_its_own() -> None:
    """Only the runner's own URL reaches the runner, and the worker believes the API and operators alone."""
    for name in ("worker", "api"):
        assert {"source": f"{name}_amqp_url", "target": "amqp_url"} in SERVICES[name]["secrets"]
    assert SERVICES["runner"]["secrets"] == ["runner_amqp_url"]
    assert SERVICES["runner"]["environment"]["TASKHERD_AMQP_URL_FILE"] == "/run/secrets/runner_amqp_url"
    accepted = Settings(
        command_senders=default(SERVICES["worker"]["environment"]["TASKHERD_COMMAND_SENDERS"]),
        report_senders=default(SERVICES["worker"]["environment"]["TASKHERD_REPORT_SENDERS"]),
    )
    assert accepted.trusted_command_senders == {"taskherd-api", "taskherd-operator"}
    assert accepted.sender_pools == {
        "taskherd-api": None, "taskherd-operator": None, "taskherd-runner": frozenset({"default"}),
    }  # fmt: skip


def test_operators_replay_as_a_user_that_the_worker_accepts() -> None:
    """The service for dead letters has the operators' URL and no other secret, and knows whom the worker accepts."""
    operator = SERVICES["operator"]
    assert operator["secrets"] == [{"source": "operator_amqp_url", "target": "amqp_url"}]
    for setting in ("TASKHERD_COMMAND_SENDERS", "TASKHERD_REPORT_SENDERS"):
        assert operator["environment"][setting] == SERVICES["worker"]["environment"][setting]
    assert operator["profiles"] == ["operator"]


def default(written: str) -> str:
    """Return the default of a variable that is written ``${NAME:-default}``."""
    match = re.fullmatch(r"\$\{TASKHERD_[A-Z_]+:-(.*)\}", written)
    assert match is not None, written
    return match[1]


def test_the_users_of_compose_have_the_rights_of_users_py(tmp_path: Path) -> None:
    """``secrets.sh`` gives each process the patterns of ``users.py``, with the pool and name of the only runner."""
    definitions = json.loads(_secrets(tmp_path, "rabbitmq.json").read_text())
    for user in ("worker", "api", "operator", "runner"):
        (tmp_path / user).write_text("s3cr3t")
    script, arguments = ROOT / "deploy" / "rabbitmq" / "users.py", ("--runner", "runner=default,runner")
    printed = subprocess.run(
        [sys.executable, script, tmp_path, *arguments], capture_output=True, check=True, timeout=30
    )
    administrator, *rights = definitions["permissions"]
    assert rights == json.loads(printed.stdout)["permissions"]
    assert (administrator["user"], administrator["write"]) == ("taskherd", ".*")
    assert [user["name"] for user in definitions["users"]] == [each["user"] for each in definitions["permissions"]]
    assert len({user["password"] for user in definitions["users"]}) == 5


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_rabbitmq_starts_with_the_users_of_compose(tmp_path: Path) -> None:
    """A new node that loads the file knows each URL, has no other user, and keeps a runner from the commands."""
    definitions = _secrets(tmp_path, "rabbitmq.json")
    found = rabbitmq.find()
    assert not isinstance(found, Missing)
    node = rabbitmq.RabbitNode(found, tmp_path / "node")
    (tmp_path / "node" / "conf.d").mkdir(parents=True)
    (tmp_path / "node" / "conf.d" / "90.conf").write_text(f"load_definitions = {definitions}\n")
    await asyncio.to_thread(node.start)
    try:
        listed = await asyncio.to_thread(node.ctl, "list_users", "--formatter", "json")
        names = {user["user"] for user in json.loads(listed)}
        assert names == {"taskherd", *(f"taskherd-{user}" for user in ("worker", "api", "operator", "runner"))}
        address = urlsplit(node.url)
        for user in ("worker", "api", "operator", "runner"):
            url = urlsplit((definitions.parent / f"{user}_amqp_url").read_text().strip())
            netloc = f"{url.username}:{url.password}@{address.hostname}:{address.port}"
            async with await aio_pika.connect(url._replace(netloc=netloc).geturl(), timeout=10) as connection:
                declaring = (await connection.channel()).declare_exchange("taskherd.commands", "topic", durable=True)
                if user == "worker":
                    await declaring
                else:
                    with pytest.raises(AMQPError):
                        await declaring
    finally:
        await asyncio.to_thread(node.stop)


def _secrets(folder: Path, name: str) -> Path:
    """Run a copy of ``secrets.sh`` twice, and return the file of this name, which the second run has not changed."""
    (folder / "compose").mkdir()
    script = shutil.copy(ROOT / "deploy" / "compose" / "secrets.sh", folder / "compose" / "secrets.sh")
    contents = []
    for _ in range(2):
        subprocess.run(["sh", script], check=True, timeout=30)
        contents.append((folder / "compose" / "secrets" / name).read_text())
    assert contents[0] == contents[1]
    return folder / "compose" / "secrets" / name
