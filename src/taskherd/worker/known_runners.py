"""Which runners work requests may go to: a report may name any, but not a pool, and no content leaves the task's pool.

Otherwise a runner could put work into the queue of another pool, or of one of its runners, and receive what agents of
other pools are told. A runner that reports a task of another pool gets a request to stop it that contains only ids. The
runner that claimed the task gets one too, in case the report was false. A provisioner that never says hello is unknown:
requests for its tasks go to the name in its reports.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from taskherd.store import build_claims, runners

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from taskherd.domain.claims import BuildClaim
    from taskherd.store import AsyncConnection
    from taskherd.store.runners import WorkTargets
    from taskherd.store.work_request_details import WorkRequestDetails
    from taskherd.store.work_requests import WorkRequestRow

    Requests = Sequence[tuple[WorkRequestRow, WorkRequestDetails]]


WITHOUT_CONTENT: Final = frozenset({"workspace.stop", "workspace.delete", "agent.interrupt"})
"""Types of requests that bring no work: they reach the runner also after a template's pool changed."""


class KnownRunners:
    """The pools, and the runners that are listed or said hello, as far as this worker has read them."""

    def __init__(self) -> None:
        self._pools: AbstractSet[str] = frozenset()
        self._pool_of: Mapping[str, str] = {}

    def replace(self, targets: WorkTargets) -> None:
        """Replace what was known by what has just been read."""
        self._pools, self._pool_of = targets.pools, {**targets.said_hello, **targets.listed}

    def is_of_another_pool(self, name: str, pool: str) -> bool:
        """Return whether the runner of this name is known to be of another pool than ``pool``."""
        return self._pool_of.get(name, pool) != pool

    async def check_targets(self, connection: AsyncConnection, requests: Requests) -> Requests:
        """Return the requests, without the target of those that may not go there, which are for the task's pool.

        Those to a runner of another pool are followed by copies for the runner that claimed the task, if that is
        another one, or for the pool if no runner has.

        A runner that is not known, or has moved, may have said hello to another worker, so all are read again then.
        """
        if any(self._is_doubtful(row, details) for row, details in requests):
            self.replace(await runners.targets(connection))
        checked = [
            (replace(row, target_runner=None), details) if self._is_refused(row, details) else (row, details)
            for row, details in requests
        ]
        doubted = [
            (row, details)
            for row, details in checked
            if row.target_runner is not None and self.is_of_another_pool(row.target_runner, details.pool)
        ]
        if not doubted:
            return checked
        claims = await build_claims.latest(connection, [row.task_id for row, _ in doubted])
        return [*checked, *(each for pair in doubted for each in _copies(*pair, claims.get(pair[0].task_id)))]

    def _is_doubtful(self, row: WorkRequestRow, details: WorkRequestDetails) -> bool:
        return row.target_runner is not None and self._pool_of.get(row.target_runner) != details.pool

    def _is_refused(self, row: WorkRequestRow, details: WorkRequestDetails) -> bool:
        name = row.target_runner
        if name is None or name in self._pools:
            return name is not None
        return row.type not in WITHOUT_CONTENT and self.is_of_another_pool(name, details.pool)


def _copies(row: WorkRequestRow, details: WorkRequestDetails, claim: BuildClaim | None) -> Requests:
    """Return the copy of a request for the runner that claimed the task, or none if the request is for that runner."""
    runner = None if claim is None else claim.runner
    return [] if runner == row.target_runner else [(replace(row, target_runner=runner), details)]
