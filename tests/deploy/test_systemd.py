"""The systemd units are valid and restrict what the processes can do."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from taskherd import durations
from taskherd.runner.privileges import MAX_PROCESSES
from taskherd.runner.workspaces.cgroups import CONTROLLERS
from taskherd.settings import Settings, unknown_variables

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
RUNNER = (ROOT / "docs" / "runner.md").read_text(encoding="utf-8")
INSTALLED = "/opt/taskherd/bin/taskherd"
COMMANDS = "taskherd.commands"
"""The exchange of commands."""
MAX_EXPOSURE = 4.0
"""Maximum exposure level, of 10; systemd calls up to 4 "OK"."""
COVERS_PROC = ("ProtectKernelTunables", "ProtectKernelLogs", "ProtectHostname", "ProtectProc", "ProcSubset")
"""What mounts something over a part of /proc, so that the kernel refuses a user namespace a new one."""

every_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)


@pytest.fixture
def local_unit(unit: Path, tmp_path: Path) -> Path:
    """Return a copy of the unit that starts a program of this machine, because taskherd is not installed under /opt."""
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(INSTALLED, sys.executable))
    return copy


@every_unit
def test_systemd_accepts_the_unit(local_unit: Path) -> None:
    """``systemd-analyze verify`` reports no problem."""
    command = ["systemd-analyze", "verify", "--man=no", str(local_unit)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stdout + process.stderr) == (0, "")


@every_unit
def test_the_unit_is_hardened(local_unit: Path) -> None:
    """``systemd-analyze security`` reports an exposure of at most ``MAX_EXPOSURE``."""
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(local_unit)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    level = re.search(r"exposure level for \S+: ([0-9.]+)", process.stdout)
    assert level is not None, process.stderr
    assert float(level[1]) <= MAX_EXPOSURE


@every_unit
def test_the_unit_sets_known_settings_and_a_sufficient_stop_timeout(unit: Path) -> None:
    """All variables are settings, secrets come from files, and systemd waits longer than the grace period."""
    text = unit.read_text()
    variables = dict(
        word.split("=", 1) for line in re.findall(r"(?m)^Environment=(.*)$", text) for word in line.split()
    )
    process = unit.stem.removeprefix("taskherd-")
    assert unknown_variables(variables) == ()
    assert all(value.startswith("%d/") for name, value in variables.items() if name.endswith("_FILE"))
    if process != "migrate":
        stop = re.search(r"(?m)^TimeoutStopSec=(.*)$", text)
        assert stop is not None
        assert (
            durations.parse(variables["TASKHERD_GRACE"])
            == Settings.model_fields["grace"].default
            < durations.parse(stop[1])
        )


def test_one_agent_cannot_take_all_processes_of_a_runner() -> None:
    """A fork bomb leaves three quarters of those that the unit and the container may have to the others."""
    unit = next(unit.read_text() for unit in UNITS if unit.stem == "taskherd-runner")
    (tasks,) = re.findall(r"(?m)^TasksMax=(.*)$", unit)
    service = yaml.safe_load((UNITS[0].parents[1] / "compose.yaml").read_text())["services"]["runner"]
    assert min(int(tasks), service["pids_limit"]) >= 4 * MAX_PROCESSES


def test_the_units_allow_enough_open_files() -> None:
    """Those of the API suffice for all its connections; agents keep a soft limit that suits select(2)."""
    texts = {unit.stem: unit.read_text() for unit in UNITS}
    limits = {stem: re.findall(r"(?m)^LimitNOFILE=(.*)$", text) for stem, text in texts.items()}
    (api,) = limits["taskherd-api"]
    assert int(api) > 2 * Settings.model_fields["api_connections"].default
    assert limits["taskherd-runner"] == [f"1024:{api}"]


def test_the_worker_believes_only_those_that_may_send_commands(tmp_path: Path) -> None:
    """The senders of its unit are the RabbitMQ users besides its own that ``users.py`` lets write commands."""
    for command in ("worker", "api", "operator", "runner", "provisioner"):
        (tmp_path / command).write_text("s3cr3t")
    script = ROOT / "deploy" / "rabbitmq" / "users.py"
    arguments = (sys.executable, script, tmp_path, "--runner", "runner=default,r")
    printed = subprocess.run(arguments, capture_output=True, check=True, timeout=30).stdout
    writers = {each["user"] for each in json.loads(printed)["permissions"] if re.search(each["write"], COMMANDS)}
    unit = next(unit.read_text() for unit in UNITS if unit.stem == "taskherd-worker")
    (senders,) = re.findall(r"(?m)^Environment=TASKHERD_COMMAND_SENDERS=(.*)$", unit)
    assert {*senders.split(",")} == writers - {"taskherd-worker"} == {"taskherd-api", "taskherd-operator"}


def _runner() -> str:
    return next(unit.read_text() for unit in UNITS if unit.stem == "taskherd-runner")


def test_agents_outlive_the_runner_with_their_temporary_files() -> None:
    """What agents see as /tmp lasts as long as they do, is open to all their users, and goes with no restart."""
    text = _runner()
    assert re.findall(r"(?m)^KillMode=(.*)$", text) == ["process"]
    assert not re.findall(r"(?m)^(PrivateTmp|RuntimeDirectory)=", text)
    (mounts,) = re.findall(r"(?m)^TemporaryFileSystem=(.*)$", text)
    options = {path: set(chosen.split(",")) for path, _, chosen in (each.partition(":") for each in mounts.split())}
    assert options.keys() == {"/tmp", "/var/tmp"}  # noqa: S108 - what the unit mounts
    assert all({"mode=1777", "nosuid", "nodev"} <= chosen for chosen in options.values())


def test_an_agent_that_is_out_of_memory_does_not_end_the_others() -> None:
    """The unit goes on after the kernel has killed one of its processes; by default systemd stops it."""
    assert re.findall(r"(?m)^OOMPolicy=(.*)$", _runner()) == ["continue"]


def test_the_example_templates_find_their_programs_under_the_unit() -> None:
    """The program ``python`` of the example is that of the environment in which the unit's taskherd is installed."""
    (path,) = re.findall(r"(?m)^Environment=PATH=(.*)$", _runner())
    assert path.split(":")[0] == str(Path(INSTALLED).parent)
    assert {"/usr/local/bin", "/usr/bin", "/bin"} <= set(path.split(":"))


def _documented_dropin(text: str, tmp_path: Path) -> str:
    """Return the only drop-in of a text, which systemd accepts over the runner's unit."""
    (dropin,) = re.findall(r"(?ms)^ *```ini\n(.*?)^ *```$", text)
    dropin = re.sub(r"(?m)^ +", "", dropin)
    unit = tmp_path / "taskherd-runner.service"
    unit.write_text(_runner().replace(INSTALLED, sys.executable))
    folder = tmp_path / "taskherd-runner.service.d"
    folder.mkdir()
    (folder / "documented.conf").write_text(dropin)
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stdout + process.stderr) == (0, "")
    return dropin


def _options(text: str) -> dict[str, str]:
    """Return the last value of each option of a unit."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def test_systemd_accepts_the_documented_cgroup(tmp_path: Path) -> None:
    """With the drop-in of docs/operations.md, the runner owns the unit's cgroup and is itself in one below it."""
    options = _options(_documented_dropin(OPERATIONS, tmp_path))
    assert options["ProtectControlGroups"] == "no"
    assert options["DelegateSubgroup"]
    assert set(options["Delegate"].split()) >= CONTROLLERS
    assert options["Environment"] == "TASKHERD_RUNNER_CGROUP=/sys/fs/cgroup/system.slice/taskherd-runner.service"


def test_the_documented_drop_in_for_sandboxes_suffices(tmp_path: Path) -> None:
    """With that of docs/runner.md, bubblewrap may make namespaces and mounts, and nothing covers a part of /proc."""
    dropin = _documented_dropin(RUNNER, tmp_path)
    assert _options(dropin)["SystemCallFilter"] == "@mount"
    merged = _options(f"{_runner()}\n{dropin}")
    assert merged["RestrictNamespaces"] == "no"
    assert {name: merged[name] for name in COVERS_PROC if merged.get(name, "no") != "no"} == {}


def test_agents_and_sandboxes_may_ask_for_network_interfaces() -> None:
    """Over netlink, as ``os.networkInterfaces()`` of Node and bubblewrap do: it starts a new network's loopback."""
    assert "AF_NETLINK" in _options(_runner())["RestrictAddressFamilies"].split()


def test_the_secrets_of_the_units_are_made(tmp_path: Path) -> None:
    """``secrets.sh`` makes each file that a unit loads, closed to others, and keeps them when it runs again."""
    folder = tmp_path / "etc"
    contents: list[dict[Path, str]] = []
    for _ in range(2):
        subprocess.run(["sh", ROOT / "deploy" / "systemd" / "secrets.sh", folder], check=True, timeout=30)
        files = [path for path in folder.rglob("*") if path.is_file()]
        contents.append({path: path.read_text() for path in files})
        assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in folder.rglob("*"))
    assert contents[0] == contents[1]
    loaded = re.findall(r"(?m)^LoadCredential=\S+?:/etc/taskherd/(.*)$", "".join(unit.read_text() for unit in UNITS))
    for name in (*loaded, "operator/amqp-url"):
        assert folder / name in contents[0], name
    for path, content in contents[0].items():
        if path.name.endswith("-url"):
            Settings.model_validate({path.name.replace("-", "_"): content.strip()})
    command = [
        sys.executable,
        str(ROOT / "deploy" / "rabbitmq" / "users.py"),
        str(folder / "rabbitmq"),
        "--runner",
        "runner=default,r",
    ]
    printed = subprocess.run(command, capture_output=True, check=True, timeout=30)
    users = {user["name"] for user in json.loads(printed.stdout)["users"]}
    assert users == {"taskherd-worker", "taskherd-api", "taskherd-operator", "taskherd-runner"}
    roles = re.findall(
        r"ALTER ROLE (\w+) PASSWORD '[0-9a-f]{48}';", (folder / "postgres" / "passwords.sql").read_text()
    )
    assert roles == ["taskherd_migrator", "taskherd_worker", "taskherd_api"]


def test_files_that_are_made_before_their_step_keep_what_they_hold(tmp_path: Path) -> None:
    """The documented steps add lines to the files of variables, and can be repeated; these are closed to others."""
    lines = re.findall(r"(?m)^ *((?:touch|install|echo) .*runner\.env.*)$", OPERATIONS)
    first_machine = [line for line in lines if "machine-2" not in line and "tasks.example.com" not in line]
    for path, variable in (
        ("/etc/taskherd/runner.env", "TASKHERD_RUNNER_AGENT_UIDS"),
        ("deploy/compose/runner.env", "KEY"),
    ):
        steps = "\n".join(line for line in first_machine if path in line)
        file = tmp_path / path.lstrip("/")
        file.parent.mkdir(parents=True)
        file.write_text(f"{variable}=kept\n")
        script = steps.replace(path, str(file))
        for _ in range(2):
            subprocess.run(["sh", "-euc", script], check=True, timeout=30)
        assert file.read_text().startswith(f"{variable}=kept\n"), steps
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert len(file.read_text().splitlines()) > 1


def test_a_runner_on_another_machine_is_installed_as_documented(tmp_path: Path) -> None:
    """It gets the first machine's password and its own name, and starts nothing but itself."""
    section = OPERATIONS.partition("#### A runner on another machine")[2].partition("\n## ")[0]
    first, second = (re.sub(r"(?m)^ {3}", "", each) for each in re.findall(r"(?ms)^ *```sh\n(.*?)^ *```$", section))
    etc, other = tmp_path / "first", tmp_path / "second"
    subprocess.run(["sh", ROOT / "deploy" / "systemd" / "secrets.sh", etc], check=True, timeout=30)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    calls = tmp_path / "calls"
    for program, body in {
        "ssh": 'shift; exec "$@"',
        "systemctl": f'echo "$@" >>{calls}',
        "cp": f'echo cp "$@" >>{calls}',
    }.items():
        (bin_ / program).write_text(f"#!/bin/sh\n{body}\n")
        (bin_ / program).chmod(0o755)
    env = {"PATH": f"{bin_}:{Path(sys.executable).parent}:/usr/bin:/bin"}
    users = first.splitlines()[0].replace("/etc/taskherd", str(etc)).partition(" >")[0]
    printed = subprocess.run(["sh", "-euc", users], cwd=ROOT, env=env, capture_output=True, check=True, timeout=30)
    permissions = {each["user"]: each for each in json.loads(printed.stdout)["permissions"]}
    (names,) = re.findall(r"--runner runner=(\S+)", first)
    assert (
        permissions["taskherd-runner"]["read"] == rf"^(taskherd\.work\.({'|'.join(map(re.escape, names.split(',')))}))$"
    )
    second = second.replace("cat /etc/taskherd", f"cat {etc}", 1).replace("/etc/taskherd", str(other))
    subprocess.run(["sh", "-euc", second], cwd=ROOT, env=env, check=True, timeout=30)
    url = urlsplit((other / "runner" / "amqp-url").read_text().strip())
    assert (url.scheme, url.username, url.hostname, url.port) == ("amqps", "taskherd-runner", "machine-1", 5671)
    assert url.password == (etc / "rabbitmq" / "runner").read_text().strip()
    Settings.model_validate({"amqp_url": url.geturl()})
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in other.rglob("*"))
    variables = dict(line.split("=", 1) for line in (other / "runner.env").read_text().splitlines())
    assert unknown_variables(variables) == ()
    assert variables["TASKHERD_RUNNER_NAME"] in names.split(",")
    assert urlsplit(variables["TASKHERD_AGENT_API_URL"]).hostname not in ("127.0.0.1", "localhost")
    assert calls.read_text().splitlines() == [
        "cp deploy/systemd/taskherd-runner.service /etc/systemd/system/",
        "daemon-reload",
        "enable --now taskherd-runner",
    ]


def test_the_documentation_says_how_others_reach_the_api() -> None:
    """The unit leaves the API on loopback, so the steps name the setting that opens it, and what Prometheus needs."""
    unit = next(unit.read_text() for unit in UNITS if unit.stem == "taskherd-api")
    assert "TASKHERD_API_HOST" not in unit
    (opened,) = re.findall(r"(?m)^echo '(TASKHERD_API_HOST=.*)' >>/etc/taskherd/api\.env$", OPERATIONS)
    assert unknown_variables(dict([opened.split("=")])) == ()
    assert '"machine-1:15692"' in OPERATIONS
    assert "rabbitmq-plugins enable rabbitmq_prometheus" in OPERATIONS
