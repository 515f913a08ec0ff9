"""The compose file and its secrets: what can be checked of them without Docker."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import pytest
import trustme
import yaml
from aio_pika.exceptions import AMQPError

from taskherd.dev import ports, rabbitmq
from taskherd.dev.sources import Missing
from taskherd.runner import privileges
from taskherd.settings import Settings
from taskherd.settings.isolation import parse_uids

ROOT = Path(__file__).parents[2]


PROXIES = re.compile(r"API_TRUSTED_PROXIES(?:=|: )([\d.:a-f/]+)")


class _Loader(yaml.SafeLoader):
    """YAML with the tag ``!override`` of Compose."""


def _override(loader: yaml.SafeLoader, node: Any) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("!override", _override)


def _load(text: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    return document


COMPOSE = _load((ROOT / "deploy" / "compose.yaml").read_text())
CLUSTER = _load((ROOT / "deploy" / "compose.cluster.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
PROCESSES = ("migrate", "worker", "api", "runner")
NODES = {"rabbitmq", "rabbitmq2", "rabbitmq3"}


def test_every_port_of_the_machine_can_be_chosen() -> None:
    """Address and port come from variables, which docs/operations.md names; the default address is loopback.

    Whoever opens the API to others does not open Prometheus, which has no login.
    """
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    addresses = {}
    for name, (port,) in published.items():
        match = re.fullmatch(r"\$\{([A-Z]+_ADDRESS):-127\.0\.0\.1\}:\$\{([A-Z]+_PORT):-(\d+)\}:\3", port)
        assert match is not None, port
        addresses[name] = match[1]
        assert f"`{match[2]}` ({match[3]})" in OPERATIONS
        assert f"`{match[1]}` (127.0.0.1)" in OPERATIONS
    assert addresses == {"api": "BIND_ADDRESS", "prometheus": "MONITORING_ADDRESS", "grafana": "MONITORING_ADDRESS"}


def test_the_documentation_says_how_monitoring_is_started() -> None:
    """What has a profile does not start by itself, so each profile but that of the operators' commands is named."""
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", ())}
    assert profiles == {"operator", "monitoring"}
    assert re.search(r"(?m)^docker compose .*--profile monitoring up ", OPERATIONS)


def test_all_processes_read_the_file_for_settings_and_tracing() -> None:
    """``compose/taskherd.env``, which need not exist, reaches every process, as does what the service itself sets.

    ``compose/runner.env`` has what agents inherit, and reaches the runner alone.
    """
    for name in PROCESSES:
        common, *own = SERVICES[name]["env_file"]
        assert common == {"path": "./compose/taskherd.env", "required": False}, name
        assert own == ([{"path": "./compose/runner.env", "required": False}] if name == "runner" else []), name
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"deploy/compose/*.env", "deploy/.env", "deploy/compose/secrets/"} <= set(ignored)


def test_agents_reach_neither_the_database_nor_the_workers() -> None:
    """Of the services, those that agents need share a network with the runner, and Prometheus, which scrapes it."""
    assert all(COMPOSE["networks"][name]["internal"] for name in ("inside", "agents"))
    own = set(SERVICES["runner"]["networks"])
    reached = {name for name, service in SERVICES.items() if own & set(service["networks"])} - {"runner"}
    assert reached == {"rabbitmq", "api", "prometheus"}
    script = (ROOT / "deploy" / "compose" / "secrets.sh").read_text()
    assert "management.tcp.ip = 127.0.0.1" in script
    for services in (SERVICES, CLUSTER["services"]):  # `check_port_connectivity` tries that port at the node's name
        checks = {
            " ".join(each["healthcheck"]["test"][3:])
            for name, each in services.items()
            if name in NODES & services.keys() and "healthcheck" in each
        }
        assert checks == {"check_port_listener 5672"}


def test_logs_of_containers_are_bounded() -> None:
    """Docker keeps the logs of a container for ever unless it is told otherwise."""
    containers = {
        name: service
        for services in (CLUSTER["services"], SERVICES)
        for name, service in services.items()
        if "image" in service
    }
    assert {"rabbitmq", "rabbitmq2", "postgres1", "worker", "runner", "grafana"} <= containers.keys()
    for name, service in containers.items():
        assert {"max-size", "max-file"} <= service["logging"]["options"].keys(), name


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


def test_images_are_pinned_as_documented(tmp_path: Path) -> None:
    """The documented loop writes a digest for every image of others that the compose files use, and nothing else."""
    (loop,) = re.findall(r"(?ms)^```sh\n(for image in BASE=.*?)^```$", (ROOT / "docs" / "operations.md").read_text())
    docker = tmp_path / "bin" / "docker"
    for folder in (docker.parent, tmp_path / "deploy"):
        folder.mkdir()
    docker.write_text("#!/bin/sh\necho sha256:$(printf %s \"$4\" | sha256sum | cut -d ' ' -f 1)\n")
    docker.chmod(0o755)
    env = {"PATH": f"{docker.parent}:/usr/bin:/bin"}
    subprocess.run(["sh", "-euc", loop], cwd=tmp_path, env=env, check=True, timeout=30)
    written = dict(line.split("=", 1) for line in (tmp_path / "deploy" / ".env").read_text().splitlines())
    files = "".join((ROOT / "deploy" / name).read_text() for name in ("compose.yaml", "compose.cluster.yaml"))
    named = dict(re.findall(r"\$\{((?!TASKHERD_)[A-Z_]+_IMAGE):-([^}]+)\}", files))
    defaults = {name: image for name, image in named.items() if not image.endswith(":dev")}  # but for our own
    assert {name: image.partition("@sha256:")[0] for name, image in written.items()} == defaults
    assert all(re.fullmatch(r".+@sha256:[0-9a-f]{64}", image) for image in written.values())


def test_a_runner_of_another_pool_is_added_as_documented(tmp_path: Path) -> None:
    """It has its own user, name, ids and volume; the worker accepts it for its pool, and other users are as before."""
    (argument,) = re.findall(r"secrets\.sh (runner-\S+)", OPERATIONS)
    before = json.loads(_secrets(tmp_path, "rabbitmq.json").read_text())
    for arguments in ([argument], []):
        subprocess.run(["sh", tmp_path / "compose" / "secrets.sh", *arguments], check=True, timeout=30)
        after = json.loads((tmp_path / "compose" / "secrets" / "rabbitmq.json").read_text())
        assert after["users"][:-1] == before["users"]
        assert after["permissions"][:-1] == before["permissions"]
        assert after["permissions"][-1]["user"] == "taskherd-runner-gpu"
        assert after["permissions"][-1]["read"] == r"^(taskherd\.work\.(gpu|gpu-1))$"
    command = ["sh", str(tmp_path / "compose" / "secrets.sh"), "gpu=gpu"]
    wrong = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert (wrong.returncode, b"runner-NAME=POOL" in wrong.stderr) == (1, True)
    pool_file = _load((ROOT / "deploy" / "compose.pool.yaml").read_text())
    added, first = pool_file["services"]["runner-gpu"]["environment"], SERVICES["runner"]["environment"]
    name, pool = added["TASKHERD_RUNNER_NAME"], added["TASKHERD_RUNNER_POOL"]
    assert argument == f"runner-{pool}={pool},{name}"
    (_, last), (start, _) = (parse_uids(each["TASKHERD_RUNNER_AGENT_UIDS"]) or (0, 0) for each in (first, added))
    assert last < start
    for nodes, variables in ((1, {}), (3, {"RABBITMQ_ERLANG_COOKIE": "c00kie"})):
        secret = tmp_path / _interpolated(pool_file["secrets"]["runner-gpu_amqp_url"]["file"], variables)
        url = secret.read_text().strip()
        assert url.startswith("amqp://taskherd-runner-gpu:")
        assert url.count(":5672") == nodes
        assert secret.stat().st_mode & 0o077 == 0
    (senders,) = re.findall(r"echo 'TASKHERD_REPORT_SENDERS=(.*)'", OPERATIONS)
    accepted = Settings(report_senders=senders).sender_pools
    usual = Settings(report_senders=default(SERVICES["worker"]["environment"]["TASKHERD_REPORT_SENDERS"])).sender_pools
    assert accepted == {**usual, "taskherd-runner-gpu": frozenset({pool})}


def test_a_removed_runner_keeps_no_access(tmp_path: Path) -> None:
    """RabbitMQ keeps users that are no longer defined: a run without a runner's line prints how to delete its user."""
    (tmp_path / "compose").mkdir()
    script = shutil.copy(ROOT / "deploy" / "compose" / "secrets.sh", tmp_path / "compose")
    secrets = tmp_path / "compose" / "secrets"

    def printed(*arguments: str) -> str:
        return subprocess.run(["sh", script, *arguments], capture_output=True, check=True, timeout=30, text=True).stdout

    assert printed("runner-gpu=gpu,gpu-1", "runner-gpu-old=old,old-1") == ""
    lines = (secrets / "runners").read_text().splitlines()
    (secrets / "runners").write_text("".join(f"{line}\n" for line in lines if not line.startswith("runner-gpu-old=")))
    (command,) = (line for line in printed().splitlines() if "delete_user" in line)
    users = [each["name"] for each in json.loads((secrets / "rabbitmq.json").read_text())["users"]]
    assert users[-2:] == ["taskherd-runner", "taskherd-runner-gpu"]
    documented = re.findall(r"^docker compose .* delete_user .*$", OPERATIONS, re.MULTILINE)
    assert [each.replace("runner-gpu", "runner-gpu-old") for each in documented] == [command]
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/called\n')
    docker.chmod(0o755)
    (tmp_path / "deploy").symlink_to(tmp_path)
    subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True, timeout=30
    )
    called = (tmp_path / "called").read_text()
    assert called.endswith(" exec rabbitmq rabbitmqctl delete_user taskherd-runner-gpu-old\n")
    assert printed() == ""


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_rabbitmq_listens_with_tls_for_other_machines(tmp_path: Path) -> None:
    """A node with the file of ``compose.amqps.yaml`` takes runners that verify its certificate."""
    remote = _load((ROOT / "deploy" / "compose.amqps.yaml").read_text())["services"]["rabbitmq"]
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificates = [tmp_path / name for name in ("ca.crt", "tls.crt", "tls.key")]
    parts = (authority.cert_pem, issued.cert_chain_pems[0], issued.private_key_pem)
    for file, part in zip(certificates, parts, strict=True):
        part.write_to_path(file)
    text = (ROOT / "deploy" / "compose" / "amqps.conf").read_text()
    for secret, file in zip(remote["secrets"], certificates, strict=True):
        assert f"= {secret['target']}\n" in text
        text = text.replace(secret["target"], str(file))
    assert remote["ports"][0].endswith(":5671")
    (port,) = ports.find_free([None])
    found = rabbitmq.find()
    assert not isinstance(found, Missing)
    node = rabbitmq.RabbitNode(found, tmp_path / "node")
    (tmp_path / "node" / "conf.d").mkdir(parents=True)
    (tmp_path / "node" / "conf.d" / "95.conf").write_text(text.replace("default = 5671", f"default = 127.0.0.1:{port}"))
    await asyncio.to_thread(node.start)
    try:
        await asyncio.to_thread(node.ctl, "await_startup")  # the TLS listener starts after the plain one
        address = urlsplit(node.url)._replace(scheme="amqps")
        url = address._replace(netloc=address.netloc.replace(str(address.port), str(port)))
        async with await aio_pika.connect(f"{url.geturl()}?cafile={certificates[0]}", timeout=30) as connection:
            assert not connection.is_closed
    finally:
        await asyncio.to_thread(node.stop)


def test_a_runner_of_another_pool_joins_the_cluster() -> None:
    """The documented files together leave out none; all runners get the URL with all nodes, and none a service away."""
    (files,) = re.findall(r"`COMPOSE_FILE=(\S*cluster\S*pool\S*)`", OPERATIONS)
    (required,) = re.findall(
        r"RABBITMQ_ERLANG_COOKIE: \$\{(\w+):\?", (ROOT / "deploy" / "compose.cluster.yaml").read_text()
    )
    loaded = [_load((ROOT / "deploy" / name).read_text()) for name in files.split(":")]
    secrets, services, volumes = (
        {name: value for each in loaded for name, value in each.get(part, {}).items()}
        for part in ("secrets", "services", "volumes")
    )
    found = {_interpolated(secrets[f"{name}_amqp_url"]["file"], {required: "x"}) for name in ("runner", "runner-gpu")}
    assert found == {f"./compose/secrets/{name}_amqp_cluster_url" for name in ("runner", "runner-gpu")}
    added = services["runner-gpu"]
    assert added["extends"] == {"file": "compose.yaml", "service": "runner"}
    assert {volume.partition(":")[0] for volume in added["volumes"]} <= volumes.keys()
    waits_for = SERVICES["runner"]["depends_on"].keys()
    assert all("single" not in services[name].get("profiles", ()) for name in waits_for)


def test_no_agent_is_a_trusted_proxy() -> None:
    """Documented proxies are single addresses: in Docker the gateway of ``outside``, and none of an agent."""
    networks = {
        name: ip_network(_default_of(network["ipam"]["config"][0]["subnet"]))
        for name, network in COMPOSE["networks"].items()
        if "ipam" in network
    }
    assert ip_address(f"{next(networks['outside'].hosts())}") not in networks["agents"]
    for subnet in networks.values():  # Docker's default pools, from which it takes the other networks
        assert not any(subnet.overlaps(ip_network(pool)) for pool in ("172.16.0.0/12", "192.168.0.0/16"))
    files = (ROOT / "deploy" / "helm" / "taskherd" / "values.yaml", ROOT / "deploy" / "compose.yaml")
    documented = PROXIES.findall(OPERATIONS + "".join(file.read_text(encoding="utf-8") for file in files))
    assert f"{next(networks['outside'].hosts())}" in documented
    (agents,) = re.findall(r"TASKHERD_AGENT_API_URL=http://([\d.]+):", OPERATIONS)
    for proxy in map(ip_network, documented):
        assert proxy.num_addresses == 1
        assert not proxy.overlaps(networks["agents"])
        assert ip_address(agents) not in proxy


def _default_of(written: str) -> str:
    """Return the default of a variable that is written ``${NAME:-default}``, which docs/operations.md names."""
    match = re.fullmatch(r"\$\{([A-Z_]+):-(.*)\}", written)
    assert match is not None, written
    assert f"`{match[1]}` ({match[2]})" in OPERATIONS
    return match[2]


def _interpolated(written: str, variables: dict[str, str]) -> str:
    """Return a value with Compose's ``${NAME:+text}`` replaced: the text if the variable has a value."""
    return re.sub(r"\$\{(\w+):\+(.*?)\}", lambda found: found[2] if variables.get(found[1]) else "", written)


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
            async with await aio_pika.connect(url._replace(netloc=netloc).geturl(), timeout=30) as connection:
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
