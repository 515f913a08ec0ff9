"""What fails unexpectedly while an agent is followed, or when it ends, leaves no task whose agent is gone unnoticed."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from taskherd import retry
from taskherd.backoff import Backoff
from taskherd.runner.agents import conclusion
from taskherd.runner.agents.acp.follower import AcpFollower
from taskherd.runner.agents.stdio import StdioFollower
from taskherd.runner.workspaces.processes import ExitRecord, ShimHandle
from tests.harness.runner import eventually
from tests.runner.acp import AcpRun, acp_run

pytestmark = pytest.mark.timeout(120)

NO_DESCRIPTOR = OSError(errno.EMFILE, "Too many open files")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the waits to a millisecond."""
    monkeypatch.setattr(retry, "OUTAGE", Backoff(0.001, 0.001))


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[EventDict]]:
    """Yield what is logged."""
    with capture_logs() as entries:
        yield entries


class Failing:
    """A method that always fails."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: object) -> NoReturn:
        """Fail."""
        self.calls += 1
        raise NO_DESCRIPTOR


def failing(times: int, then: Callable[..., object]) -> Callable[..., object]:
    """Return a function that fails so many times before it does what ``then`` does."""
    errors = iter([NO_DESCRIPTOR] * times)

    def fail_first(*arguments: object) -> object:
        for error in errors:
            raise error
        return then(*arguments)

    return fail_first


async def start(run: AcpRun, script: str) -> None:
    """Start an agent that is a shell script."""
    run.argv = ["/bin/sh", "-c", script]
    await run.start("Do it")


def exit_statuses(run: AcpRun) -> list[int]:
    """Return the exit statuses that were reported."""
    return [report["status"] for report in run.reports("agent.exit")]


@pytest.mark.parametrize("failures", [1, 3])
async def test_an_exit_that_cannot_be_reported_is_reported_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[EventDict], failures: int
) -> None:
    """A new follower reports it with the agent's last output, and the reason of the delay is logged once."""
    monkeypatch.setattr(StdioFollower, "conclude", failing(failures, StdioFollower.conclude))
    async with acp_run(tmp_path, agent="stdio") as run:
        await start(run, "echo last words; exit 3")
        assert (await run.until_ended()).code == 3
        assert exit_statuses(run) == [3]
        assert "last words" in [entry["content"] for entry in run.entries()]
        assert run.state[0] == "failed"
    assert [each["event"] for each in logged] == ["reporting the last output of an agent failed, trying again"]
    assert logged[0]["exc_info"]


async def test_an_exit_is_reported_without_the_last_output_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[EventDict]
) -> None:
    """After the last attempt the exit alone is reported, and the state that is true from then on."""
    monkeypatch.setattr(StdioFollower, "conclude", conclude := Failing())
    async with acp_run(tmp_path, agent="stdio") as run:
        await start(run, "exit 3")
        await run.until_ended()
        assert exit_statuses(run) == [3]
        assert run.state == ("failed", "The agent ended with exit status 3.")
    assert conclude.calls == conclusion.ATTEMPTS
    assert logged[-1]["event"] == "the last output of an agent is not reported"
    assert logged[-1]["reason"] == str(NO_DESCRIPTOR)


async def test_an_agent_that_was_given_up_has_failed_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its follower, too, the task says why its runner has ended the agent."""
    monkeypatch.setattr(StdioFollower, "conclude", Failing())
    async with acp_run(tmp_path, agent="stdio") as run:
        await start(run, "exec sleep 1000")
        run.journal.ended_because = "It wrote nonsense."
        run.end()
        await run.until_ended()
        assert run.state == ("failed", "It wrote nonsense.")


async def test_a_stop_waits_for_no_further_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop ends the wait: there is one more attempt, and then the exit is reported alone."""
    monkeypatch.setattr(retry, "OUTAGE", Backoff(3600, 3600, jitter=0))
    monkeypatch.setattr(StdioFollower, "conclude", conclude := Failing())
    async with acp_run(tmp_path, agent="stdio") as run:
        await start(run, "exit 3")
        await eventually(lambda: conclude.calls)
        assert run.session is not None
        assert not exit_statuses(run)
        async with asyncio.timeout(20):
            assert (await run.session.stop()).code == 3
        assert exit_statuses(run) == [3]
        assert len(run.exits) == 1
        assert conclude.calls == 2


async def test_a_stop_survives_what_is_done_after_an_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[EventDict]
) -> None:
    """An error of that is logged, and neither leaks the descriptor of the agent's shim nor ends the stop."""
    monkeypatch.setattr(AcpRun, "_record_exit", Failing())
    close, closed = ShimHandle.close, list[ShimHandle]()

    def close_and_count(handle: ShimHandle) -> None:
        closed.append(handle)
        close(handle)

    monkeypatch.setattr(ShimHandle, "close", close_and_count)
    async with acp_run(tmp_path, agent="stdio") as run:
        await start(run, "exec sleep 1000")
        assert run.session is not None
        assert (await run.session.stop()).reason == "stopped"
    assert len(closed) == 1
    assert [each["event"] for each in logged] == ["recording the exit of an agent failed"]


async def test_an_exit_that_cannot_be_found_out_now_is_found_out_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[EventDict]
) -> None:
    """An error of the wait for an agent's end does not end it, and is logged once."""
    async with acp_run(tmp_path, agent="stdio") as run:
        await start(run, "until [ -e go ]; do sleep 0.05; done; exit 3")
        monkeypatch.setattr(ShimHandle, "_collect_exit", failing(3, ShimHandle._collect_exit))
        run.touch("go")
        assert await run.until_ended() == ExitRecord("exited", 3)
    assert [each["event"] for each in logged] == ["waiting for the exit of an agent failed, trying again"]


async def test_following_goes_on_after_a_follower_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[EventDict]
) -> None:
    """A follower that fails is replaced, also if that fails at first."""
    async with acp_run(tmp_path, agent="stdio") as run:
        with monkeypatch.context() as patch:
            patch.setattr(StdioFollower, "follow", failing(1, StdioFollower.follow))
            make = AcpRun._make_follower
            make_again = failing(2, make)
            patch.setattr(AcpRun, "_make_follower", lambda run: (make_again if run.session else make)(run))
            await start(run, "echo hello; exec sleep 1000")
            await eventually(lambda: "hello" in [entry["content"] for entry in run.entries()])
        assert [each["event"] for each in logged] == ["follower failed, restarting it"] * 3


async def test_a_start_does_not_wait_for_a_follower_that_will_never_say_how_it_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the end of an agent before its session cannot be reported, its start has failed for that reason."""
    monkeypatch.setattr(AcpFollower, "conclude", Failing())
    async with acp_run(tmp_path) as run:
        await start(run, "exit 3")
        assert run.session is not None
        async with asyncio.timeout(30):
            assert await run.session.wait_started() == "The agent ended with exit status 3."
