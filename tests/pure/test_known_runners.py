"""To which runners work requests may go, by what is known of them; without a database."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from taskherd.domain.claims import BuildClaim
from taskherd.messages import work
from taskherd.store import build_claims, runners
from taskherd.store.runners import WorkTargets
from taskherd.store.work_request_details import WorkRequestDetails
from taskherd.store.work_requests import WorkRequestRow
from taskherd.worker.known_runners import KnownRunners
from tests.harness.histories import NOON

TARGETS = WorkTargets(frozenset({"gpu", "arm"}), {"listed": "arm"}, {"hello": "gpu", "listed": "gpu"})
START = WorkRequestRow(UUID(int=1), UUID(int=2), 1, "workspace.start", None, None, 1, NOON, NOON, None)
DETAILS = WorkRequestDetails(
    START.task_id, "n", UUID(int=3), "alice", UUID(int=4), "p", {"pool": "gpu"}, None, None, None
)


class Known(KnownRunners):
    """What is known, with the number of times that it was read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.reads = 0
        self.claim: BuildClaim | None = None
        monkeypatch.setattr(build_claims, "latest", self._latest)
        monkeypatch.setattr(runners, "targets", self._read)

    async def _read(self, connection: str) -> WorkTargets:
        assert connection == "connection"
        self.reads += 1
        return TARGETS

    async def _latest(self, connection: str, task_ids: list[UUID]) -> dict[UUID, BuildClaim]:
        assert connection == "connection"
        return {} if self.claim is None else dict.fromkeys(task_ids, self.claim)

    async def check(self, *targets: str | None, kind: str = "workspace.start") -> list[str | None]:
        """Return the targets that requests to these get."""
        connection: Any = "connection"
        requests = [(replace(START, target_runner=target, type=kind), DETAILS) for target in targets]
        checked = await self.check_targets(connection, requests)
        assert [replace(row, target_runner=None, type=START.type) for row, _ in checked] == [START] * len(checked)
        assert all(details is DETAILS for _, details in checked)
        return [row.target_runner for row, _ in checked]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Known:
    """Return what is known at first: nothing."""
    return Known(monkeypatch)


async def test_runners_are_read_when_one_is_doubtful(known: Known) -> None:
    """One that is not known yet, or known to be of another pool; not if all are of the pools of their tasks."""
    assert await known.check() == []
    assert await known.check(None, None) == [None, None]
    assert known.reads == 0
    assert await known.check(None, "hello") == [None, "hello"]
    assert known.reads == 1
    assert await known.check("hello", "hello") == ["hello", "hello"]
    assert known.reads == 1
    assert await known.check("hello", "listed", None) == ["hello", None, None]
    assert known.reads == 2


@pytest.mark.parametrize(
    ("target", "kind", "goes_to"),
    [
        (None, "workspace.start", None),
        ("hello", "workspace.start", "hello"),
        ("unknown", "workspace.start", "unknown"),
        ("listed", "workspace.start", None),
        ("listed", "agent.input", None),
        ("listed", "workspace.stop", "listed"),
        ("listed", "workspace.delete", "listed"),
        ("listed", work.AGENT_INTERRUPT, "listed"),
        ("gpu", "workspace.start", None),
        ("arm", "workspace.stop", None),
    ],
)
async def test_work_goes_to_runners_of_the_pool_alone(
    known: Known, target: str | None, kind: str, goes_to: str | None
) -> None:
    """A pool's name is no runner's; what brings no work reaches a runner of another pool, too."""
    known.claim = BuildClaim(START.task_id, 1, target or "")
    assert await known.check(target, kind=kind) == [goes_to]


@pytest.mark.parametrize(
    ("claimed_by", "target", "copies"),
    [
        ("hello", "listed", ["hello"]),
        ("listed", "listed", []),
        (None, "listed", [None]),
        ("hello", "hello", []),
        (None, "unknown", []),
    ],
)
async def test_whoever_claimed_the_task_is_asked_to_end_it(
    known: Known, claimed_by: str | None, target: str, copies: list[str | None]
) -> None:
    """Besides a runner of another pool, which may only have reported that it has it; the pool, if nobody has."""
    known.claim = None if claimed_by is None else BuildClaim(START.task_id, 1, claimed_by)
    assert await known.check(target, kind="workspace.stop") == [target, *copies]


def test_the_directory_says_of_which_pool_a_runner_is(known: Known) -> None:
    """Whatever it has said itself; one that is not known is of no other pool."""
    known.replace(TARGETS)
    assert known.is_of_another_pool("listed", "gpu")
    assert not known.is_of_another_pool("listed", "arm")
    assert not known.is_of_another_pool("hello", "gpu")
    assert not known.is_of_another_pool("unknown", "gpu")
