"""The files of the cluster in deploy/: what can be checked of them without Docker, with the programs that read them."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from sqlalchemy import text

from taskherd.broker import diagnostics
from taskherd.dev import ports, rabbitmq
from taskherd.dev.sources import Missing
from taskherd.errors import Unavailable
from taskherd.settings import Settings
from taskherd.store import role_settings
from taskherd.store.engine import dispose, open_engine, transaction
from tests.cluster.etcd import EtcdMember, compaction, start_all
from tests.cluster.haproxy import RABBITMQ, Server, running_haproxy
from tests.harness.pgbouncer import StartPgBouncer, recommended_settings
from tests.harness.programs import find_program

DEPLOY = Path(__file__).parents[2] / "deploy"
CLUSTER = DEPLOY / "cluster"
OPERATIONS = (DEPLOY.parent / "docs" / "operations.md").read_text(encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """YAML with the tags of Compose."""


def _override(loader: yaml.SafeLoader, node: Any) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("!override", _override)
BASE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
COMPOSE: dict[str, Any] = yaml.load((DEPLOY / "compose.cluster.yaml").read_text(), _Loader)  # noqa: S506 - a SafeLoader


@pytest.mark.slow
def test_haproxy_accepts_its_configuration(announce: Callable[[str], None]) -> None:
    """HAProxy finds no error or warning in its configuration."""
    program = find_program("haproxy", "haproxy", announce)
    command = [program, "-c", "-f", str(CLUSTER / "haproxy.cfg")]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.slow
def test_haproxy_accepts_the_documented_changes_for_several_machines(
    tmp_path: Path, announce: Callable[[str], None]
) -> None:
    """Without Docker's resolver, and on ports that neither PostgreSQL nor RabbitMQ of the same machine has."""
    (edits,) = re.findall(
        r"(?ms)^cd deploy/cluster\n(sed .*?)^```$", (DEPLOY.parent / "docs" / "operations.md").read_text()
    )
    copy = shutil.copytree(CLUSTER, tmp_path / "cluster")
    subprocess.run(["sh", "-euc", edits], cwd=copy, check=True, timeout=30)
    changed = (copy / "haproxy.cfg").read_text()
    assert "docker" not in changed
    assert re.findall(r"bind (\S+)", changed) == ["127.0.0.1:5433", "127.0.0.1:5673"]
    assert "host=127.0.0.1 port=5433" in (copy / "pgbouncer.ini").read_text()
    program = find_program("haproxy", "haproxy", announce)
    command = [program, "-c", "-f", str(copy / "haproxy.cfg")]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.slow
async def test_clients_reach_rabbitmq_through_this_haproxy(
    amqp_url: str, tmp_path: Path, announce: Callable[[str], None]
) -> None:
    """Of three nodes, two of which are away, it leads clients to the one that speaks AMQP."""
    parts = urlsplit(amqp_url)
    (free,) = ports.find_free([None])
    away, there = Server(f"{ports.HOST}:{free}"), Server(f"{ports.HOST}:{parts.port}")
    with running_haproxy(tmp_path / "haproxy", RABBITMQ, [away, there, away], announce) as address:
        through = parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{address}").geturl()
        async with asyncio.timeout(60):
            while (version := await _version_of(through)) is None:  # noqa: ASYNC110 - nobody notifies
                await asyncio.sleep(0.2)  # it checks the nodes first
    assert version >= (4,)


async def _version_of(url: str) -> tuple[int, ...] | None:
    """Return the version of the RabbitMQ that answers at a URL, None without an answer."""
    try:
        async with diagnostics.connect(url) as connection:
            return diagnostics.server_version(connection)
    except Unavailable:
        return None


@pytest.mark.slow
async def test_taskherd_works_behind_this_pgbouncer(start_pgbouncer: StartPgBouncer, database_url: str) -> None:
    """With these settings, PgBouncer takes the sessions of taskherd, once the role has its settings."""
    settings = recommended_settings()
    await role_settings.apply(database_url)
    async with start_pgbouncer(**settings) as bouncer:
        engine = open_engine(bouncer.url(pgbouncer=settings["pool_mode"]), size=2, application_name="tests")
        async with transaction(engine) as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
        await dispose(engine)


def test_every_secret_is_made_and_every_file_is_there(tmp_path: Path) -> None:
    """``secrets.sh`` makes all secrets, and everything that containers mount exists."""
    script = shutil.copy(DEPLOY / "compose" / "secrets.sh", tmp_path)
    subprocess.run(["sh", script], check=True, timeout=60)
    for secret in COMPOSE["secrets"].values():
        assert (tmp_path / "secrets" / Path(secret["file"]).name).read_text().strip(), secret
    mounted = [volume for service in COMPOSE["services"].values() for volume in service.get("volumes", ())]
    for path in (volume.partition(":")[0] for volume in mounted if volume.startswith("./")):
        assert (DEPLOY / path).is_file(), path
    named = {volume.partition(":")[0] for volume in mounted if not volume.startswith("./")}
    assert named == set(COMPOSE["volumes"])


def test_the_name_of_each_rabbitmq_node_leads_to_it_alone() -> None:
    """The nodes form a cluster by these names, and HAProxy checks them, so none may be an alias of another node."""
    names = re.findall(r"nodes\.\d = rabbit@(\S+)", (CLUSTER / "rabbitmq.conf").read_text())
    assert len(names) == 3
    assert names == re.findall(r"server (\S+) \1:5672 check", (CLUSTER / "haproxy.cfg").read_text())
    services = BASE["services"] | COMPOSE["services"]
    assert [services[name].get("hostname", BASE["services"].get(name, {}).get("hostname")) for name in names] == names
    networks = [service["networks"] for service in services.values() if isinstance(service.get("networks"), dict)]
    aliases = {alias for each in networks for network in each.values() for alias in network.get("aliases", ())}
    assert not aliases & set(names)


def test_the_documented_backup_of_the_cluster_asks_its_leader(tmp_path: Path) -> None:
    """The commands run in a member that is started, as the superuser, whose password it has, and ask the leader."""
    shell = "".join(re.findall(r"(?ms)^```sh\n((?:dump=\S+\n)?as_superuser.*?)^```$", OPERATIONS)[:2])
    (tmp_path / "taskherd-2026-01-31.dump").touch()
    programs = {
        "docker": 'echo "$@" >>calls; shift 4; exec "$@"',
        **dict.fromkeys(("pg_dump", "pg_restore"), 'echo "${0##*/} $PGUSER@$PGHOST $*" >>calls'),
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["sh", "-euc", shell], cwd=tmp_path, env=environment, check=True, timeout=30, capture_output=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    services = {call.split()[3] for call in calls if call.startswith("compose exec -T ")}
    assert len(services) == 1
    for name in services:
        assert "profiles" not in COMPOSE["services"][name]
        assert "postgres_superuser_password" in COMPOSE["services"][name]["secrets"]
    assert "/run/secrets/postgres_superuser_password" in shell
    assert "haproxy" in COMPOSE["services"]
    assert [call for call in calls if call.startswith("pg_")] == [
        "pg_dump postgres@haproxy -Fc taskherd",
        "pg_restore postgres@haproxy -f -",
        "pg_restore postgres@haproxy -f -",
        "pg_restore postgres@haproxy -d taskherd --exit-on-error",
    ]


def test_the_documentation_lists_every_port_between_the_machines() -> None:
    """Whoever spreads the cluster is told of each port that listens for others, and of those that nothing guards."""
    etcd = COMPOSE["services"]["etcd1"]["command"][0]
    patroni = yaml.safe_load((CLUSTER / "patroni.yml").read_text())
    listening = {
        *re.findall(r"http://0\.0\.0\.0:(\d+)", etcd),
        *(patroni[part]["listen"].rpartition(":")[2] for part in ("restapi", "postgresql")),
        *("4369", "25672", "5672", "15692"),  # RabbitMQ
    }
    table = re.findall(r"(?m)^\| ([0-9, ]+) \(.*\|$", OPERATIONS)
    assert listening <= {port for row in table for port in row.split(", ")}
    for port in ("2379", "8008"):  # as long as these files have no login there
        (row,) = re.findall(rf"(?m)^\| {port}.*$", OPERATIONS)
        assert "**nothing**" in row
    assert "authentication" not in patroni["restapi"]
    assert all(line.startswith("host ") for line in patroni["postgresql"]["pg_hba"])


def test_etcd_forgets_what_its_keys_were() -> None:
    """Unless it is told otherwise, etcd keeps all revisions, and Patroni writes some each second: 2 GB in weeks."""
    assert compaction() == ["--auto-compaction-mode=periodic", "--auto-compaction-retention=1h"]
    for name in ("etcd1", "etcd2", "etcd3"):
        assert set(compaction()) <= set(COMPOSE["services"][name]["command"][0].split())


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_documented_commands_bring_a_full_etcd_back(
    tmp_path: Path, announce: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An etcd at its quota renews leases but grants none, until the commands have been run."""
    (shell,) = re.findall(r"(?ms)^```sh\n(revision=.*?)^```$", OPERATIONS)
    etcd, etcdctl = (find_program(*each, announce) for each in (("etcd", "etcd-server"), ("etcdctl", "etcd-client")))
    monkeypatch.setenv("ETCD_QUOTA_BACKEND_BYTES", "2000000")
    members = [EtcdMember(f"etcd{n}", tmp_path / f"etcd{n}") for n in (1, 2, 3)]
    urls = {member.name: member.url for member in members}
    cases = "".join(f'{name}) shift 4; exec {etcdctl} --endpoints {url} "$@" ;;\n' for name, url in urls.items())
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\n[ "$2" = up ] && echo "$@" >>up && exit\nshift; case $3 in\n{cases}esac\nexit 1\n')
    docker.chmod(0o755)

    def control(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [etcdctl, "--endpoints", urls["etcd2"], *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    try:
        start_all(etcd, members)
        lease = control("lease", "grant", "3600").stdout.split()[1]
        puts = (control("put", "key", "x" * 100_000) for _ in range(100))
        assert "database space exceeded" in next(put.stderr for put in puts if put.returncode)
        assert control("lease", "keep-alive", "--once", lease).returncode == 0
        assert "database space exceeded" in control("lease", "grant", "20").stderr

        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        subprocess.run(["sh", "-euc", shell], cwd=tmp_path, env=environment, check=True, timeout=60)
        assert control("lease", "grant", "20").returncode == 0
        assert control("put", "key", "x" * 100_000).returncode == 0
        assert control("alarm", "list").stdout == ""
        sizes = re.findall(r'"DBSize" : (\d+)', control("endpoint", "status", "--cluster", "-w", "fields").stdout)
        assert len(sizes) == 3
        assert all(int(size) < 1_000_000 for size in sizes)
    finally:
        for member in members:
            member.kill()
    assert (tmp_path / "up").read_text().splitlines() == [f"compose up -d --no-deps --wait {name}" for name in urls]


def test_patronictl_is_called_where_it_works() -> None:
    """The documented command names a member, and the file of Patroni's settings in it."""
    service, path = re.findall(r"docker compose exec (\w+) patronictl -c (\S+) list", OPERATIONS)[0]
    assert f"./cluster/patroni.yml:{path}:ro" in COMPOSE["services"][service]["volumes"]


def test_all_rabbitmq_nodes_have_the_same_settings() -> None:
    """Each has both files, where RabbitMQ looks for them."""
    for name in re.findall(r"nodes\.\d = rabbit@(\S+)", (CLUSTER / "rabbitmq.conf").read_text()):
        assert {
            "./cluster/rabbitmq.conf:/etc/rabbitmq/conf.d/80-cluster.conf:ro",
            "./cluster/rabbitmq-advanced.config:/etc/rabbitmq/advanced.config:ro",
        } <= {*COMPOSE["services"][name]["volumes"]}


def test_prometheus_scrapes_all_rabbitmq_nodes() -> None:
    """The file of targets that is mounted over the one for a single node names each node."""
    names = re.findall(r"nodes\.\d = rabbit@(\S+)", (CLUSTER / "rabbitmq.conf").read_text())
    target, group = _targets("rabbitmq")
    assert group["targets"] == [f"{name}:15692" for name in names]
    [single] = yaml.safe_load((DEPLOY / "prometheus" / target).read_text())
    assert single["targets"] == group["targets"][:1]


@pytest.mark.parametrize(("job", "members"), [("etcd", "etcd"), ("patroni", "postgres")])
def test_prometheus_scrapes_all_members(job: str, members: str) -> None:
    """Each is a target, in a network of Prometheus, at a port where it listens; without the cluster, none is."""
    target, group = _targets(job)
    services = {name: each for name, each in COMPOSE["services"].items() if re.fullmatch(rf"{members}\d", name)}
    etcd = COMPOSE["services"]["etcd1"]["command"][0]
    listening = {
        "etcd": re.findall(r"--listen-metrics-urls http://0\.0\.0\.0:(\d+)", etcd),
        "patroni": [yaml.safe_load((CLUSTER / "patroni.yml").read_text())["restapi"]["listen"].rpartition(":")[2]],
    }
    (port,) = listening[job]
    assert group["targets"] == [f"{name}:{port}" for name in services]
    assert len(services) == 3
    for service in services.values():
        assert set(service["networks"]) & set(BASE["services"]["prometheus"]["networks"])
    assert yaml.safe_load((DEPLOY / "prometheus" / target).read_text()) == []
    jobs = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    (configured,) = (each for each in jobs if each["job_name"] == job)
    assert configured["file_sd_configs"] == [{"files": [target]}]


def _targets(job: str) -> tuple[str, dict[str, Any]]:
    """Return the name of the file in Prometheus's folder that the cluster's is mounted over, and what that has."""
    mounts = [each.split(":") for each in COMPOSE["services"]["prometheus"]["volumes"]]
    ((source, target),) = ((source, target) for source, target, _ in mounts if source.endswith(f"-{job}.yml"))
    [group] = yaml.safe_load((DEPLOY / source).read_text())
    return Path(target).relative_to("/etc/prometheus").name, group


def test_each_process_knows_all_rabbitmq_nodes(tmp_path: Path) -> None:
    """The URLs of the cluster are those of the single node, with the other nodes as further hosts."""
    script = shutil.copy(DEPLOY / "compose" / "secrets.sh", tmp_path)
    subprocess.run(["sh", script], check=True, timeout=60)
    names = re.findall(r"nodes\.\d = rabbit@(\S+)", (CLUSTER / "rabbitmq.conf").read_text())
    for process in ("worker", "api", "operator", "runner"):
        single, cluster = (
            (tmp_path / "secrets" / Path(compose["secrets"][f"{process}_amqp_url"]["file"]).name).read_text().strip()
            for compose in (BASE, COMPOSE)
        )
        assert cluster == single.replace("@rabbitmq:5672", "@" + ",".join(f"{name}:5672" for name in names))
        assert Settings(amqp_url=cluster).amqp_url == cluster


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_rabbitmq_accepts_its_configuration(tmp_path: Path) -> None:
    """A node with these files and with nobody else to form a cluster with starts, and does what the files say."""
    found = rabbitmq.find()
    assert not isinstance(found, Missing)
    node = _AdvancedNode(found, tmp_path / "node")
    own = re.sub(r"nodes\.1 = \S+", f"nodes.1 = {node.name}", (CLUSTER / "rabbitmq.conf").read_text())
    alone = re.sub(r".*nodes\.[23] = .*\n", "", own)
    (tmp_path / "node" / "conf.d").mkdir(parents=True)
    (tmp_path / "node" / "conf.d" / "80-cluster.conf").write_text(alone)
    await asyncio.to_thread(node.start)
    try:
        environment = await asyncio.to_thread(node.ctl, "eval", "application:get_all_env(rabbit).")
        tick_time = await asyncio.to_thread(node.ctl, "eval", "net_kernel:get_net_ticktime().")
    finally:
        await asyncio.to_thread(node.stop)
    assert "{cluster_partition_handling,pause_minority}" in environment
    assert "{default_queue_type,rabbit_quorum_queue}" in environment
    assert f"{{cluster_nodes,{{['{node.name}'],disc}}}}" in environment
    assert tick_time.strip() == "20"


class _AdvancedNode(rabbitmq.RabbitNode):
    """A node with the file that each of the cluster has as its ``advanced.config``."""

    def _env(self) -> dict[str, str]:
        return super()._env() | {"RABBITMQ_ADVANCED_CONFIG_FILE": str(CLUSTER / "rabbitmq-advanced.config")}


def test_the_url_says_what_pgbouncer_does() -> None:
    """The database URL names the pool mode of pgbouncer.ini."""
    url = re.search(r'make pgbouncer_url "(.*)"', (DEPLOY / "compose" / "secrets.sh").read_text())
    assert url is not None
    assert Settings(database_url=url[1].replace("$(cat postgres_password)", "x")).database_url
    settings = (CLUSTER / "pgbouncer.ini").read_text()
    assert "pool_mode = transaction" in settings
    (console,) = re.findall(r"(?m)^admin_users = (\w+)$", settings)
    assert f'"{console}"' in COMPOSE["services"]["pgbouncer"]["command"][0]
    assert url[1].endswith("?pgbouncer=transaction")
