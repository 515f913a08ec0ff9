"""Which runners work requests may go to: a report may name any, but only a known one of the task's own pool counts.

Otherwise a runner could put work into the queue of another pool, or of a runner of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from taskherd.store import runners

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskherd.store import AsyncConnection
    from taskherd.store.runners import WorkTargets
    from taskherd.store.work_request_details import WorkRequestDetails
    from taskherd.store.work_requests import WorkRequestRow

    Requests = Sequence[tuple[WorkRequestRow, WorkRequestDetails]]


class KnownRunners:
    """The runners that are listed in the directory or said hello, as far as this worker has read them."""

    def __init__(self) -> None:
        self._pool_of: Mapping[str, str] = {}

    def replace(self, targets: WorkTargets) -> None:
        """Replace what was known by what has just been read."""
        pools = targets.pools
        self._pool_of = {
            name: pool for name, pool in {**targets.said_hello, **targets.listed}.items() if name not in pools
        }

    def is_of_another_pool(self, name: str, pool: str) -> bool:
        """Return whether a runner of this name is known, and it is of another pool."""
        return self._pool_of.get(name, pool) != pool

    async def check_targets(self, connection: AsyncConnection, requests: Requests) -> Requests:
        """Return the requests, without the target of those whose runner is none of the task's pool.

        A runner that is not known may have said hello to another worker since, so all are read again then.
        """
        if any(self._is_foreign(row, details) for row, details in requests):
            self.replace(await runners.targets(connection))
        return [
            (replace(row, target_runner=None), details) if self._is_foreign(row, details) else (row, details)
            for row, details in requests
        ]

    def _is_foreign(self, row: WorkRequestRow, details: WorkRequestDetails) -> bool:
        return row.target_runner is not None and self._pool_of.get(row.target_runner) != details.pool
