"""The wheel: without extras a small client, and a message that names the extra where that is not enough."""

from __future__ import annotations

import asyncio
import compileall
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from taskherd.directory_file.example import EXAMPLE
from tests.harness.api import ApiHarness
from tests.harness.databases import execute
from tests.harness.dev_session import READY, alarming, session

ROOT = Path(__file__).parents[2]
MAX_CLIENT_BYTES = 40_000_000
"""Maximum size of a client and what it needs, with their bytecode."""
SERVER = {"sqlalchemy", "asyncpg", "aio-pika", "orjson", "uvloop", "starlette", "uvicorn", "structlog", "alembic"}
BUILD_TIMEOUT = 120
COMMAND_TIMEOUT = 60
_NAME = re.compile(r"[A-Za-z0-9._-]+")
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Client:
    """A virtual environment in which the wheel is installed without extras."""

    folder: Path

    @property
    def packages(self) -> Path:
        """The folder of the installed packages."""
        (packages,) = self.folder.glob("lib/python3*/site-packages")
        return packages

    def run(self, *words: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        """Run ``taskherd`` as installed, outside of this checkout and without its environment."""
        return subprocess.run(
            [self.folder / "bin" / "taskherd", *words],
            cwd=self.folder,
            env={"PATH": os.defpath, "COLUMNS": "200", **environ},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built from this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, timeout=BUILD_TIMEOUT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def client(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """Return an environment with the wheel and what it requires without extras, at the versions of the lock file.

    This environment was installed from the lock file; its packages are copied, so that the network is not needed.
    """
    client = Client(tmp_path_factory.mktemp("client"))
    venv.create(client.folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(client.folder / "bin" / "python"), "install", "-q"]
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
    subprocess.run([*pip, *options], timeout=BUILD_TIMEOUT, check=True, capture_output=True)
    (taskherd,) = metadata.distributions(name="taskherd", path=[str(client.packages)])
    for name in closure(taskherd.requires or ()):
        for file in metadata.distribution(name).files or ():
            target = client.packages / file
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(file.locate()), target)
    return client


@pytest.fixture(scope="session")
def local(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """Return an environment with the same wheel and what its extra ``local`` requires.

    That is taken from this environment, in which taskherd itself is installed in another way: a path in a ``.pth`` file
    leads to its packages, but not to what their own ``.pth`` files name.
    """
    local = Client(tmp_path_factory.mktemp("local"))
    venv.create(local.folder, symlinks=True)
    (local.packages / "packages.pth").write_text(f"{client.packages}\n{sysconfig.get_path('purelib')}\n")
    script = (client.folder / "bin" / "taskherd").read_text()
    (local.folder / "bin" / "taskherd").write_text(script.replace(str(client.folder), str(local.folder)))
    (local.folder / "bin" / "taskherd").chmod(0o755)
    show = [str(local.folder / "bin" / "python"), "-I", "-c", "import taskherd; print(taskherd.__file__)"]
    imported = subprocess.run(show, capture_output=True, text=True, timeout=COMMAND_TIMEOUT, check=True)
    assert imported.stdout.strip() == str(client.packages / "taskherd" / "__init__.py")
    return local


def closure(requirements: list[str] | tuple[()]) -> set[str]:
    """Return the names of the distributions that the requirements need, without those of extras and other systems."""
    found: set[str] = set()
    waiting = [each for each in requirements if ";" not in each]
    while waiting:
        match = _NAME.match(waiting.pop())
        assert match is not None
        if match[0] not in found:
            found.add(match[0])
            waiting += [each for each in metadata.distribution(match[0]).requires or () if ";" not in each]
    return found


def test_the_client_is_small(client: Client) -> None:
    """Without extras, nothing of the server is installed, and the rest is small."""
    installed = {each.name.lower() for each in metadata.distributions(path=[str(client.packages)])}
    assert {"taskherd", "typer", "rich"} <= installed
    assert not SERVER & installed
    assert compileall.compile_dir(client.packages, quiet=1)
    size = sum(path.stat().st_size for path in client.packages.rglob("*") if path.is_file())
    assert size < MAX_CLIENT_BYTES


async def test_the_client_talks_to_an_api(client: Client, api_harness: ApiHarness) -> None:
    """``taskherd task`` lists, waits and explains how an agent ended, and ``taskherd mcp`` has its tools."""
    environ = {"TASKHERD_URL": api_harness.base, "TASKHERD_TOKEN": api_harness.tokens["alice"]}
    created = await api_harness.create(name="packaged")
    listed = await asyncio.to_thread(client.run, "task", "list", "-o", "json", **environ)
    assert [each["id"] for each in json.loads(listed.stdout)] == [created["id"]], listed
    table = await asyncio.to_thread(client.run, "task", "list", **environ)
    assert "alice/packaged" in table.stdout
    waited = await asyncio.to_thread(client.run, "task", "wait", "packaged", "--timeout", "100ms", **environ)
    assert (waited.returncode, "within 100ms" in waited.stderr) == (124, True), waited
    messages = "".join(json.dumps({"jsonrpc": "2.0", **each}) + "\n" for each in MCP_MESSAGES)
    served = await asyncio.to_thread(client.run, "mcp", stdin=messages, **environ)
    assert "coder_list_tasks" in served.stdout, served


MCP_MESSAGES = (
    {
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    },
    {"method": "notifications/initialized"},
    {"id": 2, "method": "tools/list"},
)


def test_help_needs_no_extra(client: Client) -> None:
    """``--help`` and ``--version`` work, and the help says which commands are not installed."""
    shown = client.run("--help")
    assert shown.returncode == 0, shown
    assert "Create, inspect and control tasks" in shown.stdout
    assert re.search(r"token +Not installed: .*run", shown.stdout), shown
    assert client.run("--version").stdout.startswith("taskherd ")
    assert client.run("task", "--help").returncode == 0


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["worker"], "server"),
        (["api"], "server"),
        (["runner"], "server"),
        (["config"], "server"),
        (["doctor", "api"], "server"),
        (["db", "upgrade"], "server"),
        (["token", "create", "--user", "alice"], "server"),
        (["directory", "apply", "-"], "server"),
        (["dev", "--services-only"], "local"),
    ],
    ids=" ".join,
)
def test_other_commands_say_what_to_install(client: Client, words: list[str], extra: str) -> None:
    """A command that needs an extra ends with 2 and one line with the command that installs it."""
    ended = client.run(*words)
    assert ended.returncode == 2, ended
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.rstrip().endswith(f"run `pip install 'taskherd[{extra}]'`")


def test_the_wheel_has_the_example_directory(wheel: Path) -> None:
    """The directory that ``taskherd dev`` loads is in the wheel, as a file with its content."""
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("taskherd/directory_file/example.yaml") == EXAMPLE.read_bytes()


def test_the_wheel_has_the_board(wheel: Path) -> None:
    """Every file of the board is in the wheel, as it is in this checkout, with the licence of what is vendored."""
    folder = ROOT / "src" / "taskherd" / "api" / "board" / "static"
    files = {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}
    prefix = "taskherd/api/board/static/"
    with zipfile.ZipFile(wheel) as archive:
        packed = {
            name.removeprefix(prefix): archive.read(name) for name in archive.namelist() if name.startswith(prefix)
        }
    assert packed == files
    assert {"index.html", "app.js", "style.css", "vendor/lit-html/LICENSE"} <= set(packed)


@pytest.mark.timeout(180)
async def test_dev_starts_quietly(
    local: Client, tmp_path: Path, database_url: str, amqp_url: str, amqp_prefix: str
) -> None:
    """From the wheel, in an empty folder and with an empty database, nothing alarming is printed until all runs.

    Only RabbitMQ and PostgreSQL run already; the tests in ``tests/dev`` let it start them.
    """
    await execute(database_url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    env = {"PATH": os.defpath, "HOME": str(tmp_path), "TASKHERD_AMQP_PREFIX": amqp_prefix}
    env |= {"TASKHERD_DATABASE_URL": database_url, "TASKHERD_AMQP_URL": amqp_url}
    started = ("worker starting", "api serving", "runner starting", READY)
    async with session(tmp_path, env, taskherd=[local.folder / "bin" / "taskherd"], until=started) as lines:
        assert alarming(lines) == []
        assert any("API token for alice" in line for line in lines), lines  # the example's user
