"""A forked process of taskherd is like one that is started, which the first of each command in a file is."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.harness import fork_server
from tests.harness.fork_server import ForkedProcess

ENVIRONMENT = {"PATH": os.environ["PATH"], "COLUMNS": "100"}


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--help"], 0), (["nothing"], 2), (["config"], 0), (["template", "check", "a", "--file", "no.yaml"], 2)],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_a_command_prints_and_exits_alike(tmp_path: Path, arguments: list[str], status: int) -> None:
    """With its arguments, environment and folder."""
    environment = {**ENVIRONMENT, "TASKHERD_RUNNER_NAME": "a-name-of-its-own"}
    started, forked = (fork_server.run(arguments, environment, folder=tmp_path) for _ in range(2))
    assert (started.returncode, forked.returncode) == (status, status)
    assert (forked.stdout, forked.stderr) == (started.stdout, started.stderr)
    assert ("a-name-of-its-own" in forked.stdout.decode()) == (arguments == ["config"])


def test_a_command_reads_its_stdin(tmp_path: Path) -> None:
    """To the end of what it is given."""
    arguments = ["directory", "apply", "--dry-run", "-"]
    started, forked = (fork_server.run(arguments, ENVIRONMENT, content=b"{", folder=tmp_path) for _ in range(2))
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)


async def test_a_process_ends_alike(tmp_path: Path, amqp_url: str) -> None:
    """With 0 after SIGTERM, and with the number of a signal that kills it; everybody who waits gets to know."""
    settings = {"AMQP_URL": amqp_url, "RUNNER_NAME": "r1", "RUNNER_ROOT": str(tmp_path), "OPS_PORT": "0"}
    environment = {**ENVIRONMENT, **{f"TASKHERD_{name}": value for name, value in settings.items()}}
    forked = []
    for number, expected in ((signal.SIGTERM, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
        log = tmp_path / "log"
        with log.open("wb") as output:
            process = await fork_server.start("runner", environment, output=output, errors=output)
        async with asyncio.timeout(60):
            while b"ops_port" not in log.read_bytes():
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.05)
            process.send_signal(number)
            assert set(await asyncio.gather(process.wait(), process.wait())) == {expected}
        assert process.returncode == expected
        with pytest.raises(ProcessLookupError):
            process.kill()
        forked.append(isinstance(process, ForkedProcess))
    assert forked == [False, True, True]
