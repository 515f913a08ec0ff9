"""A primary and a standby of it without a cluster manager, behind a proxy: whoever leads is decided by hand."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from taskherd.dev.postgres import PostgresNode
from taskherd.store import migrate
from tests.harness.chaos import ChaosHarness, chaos_harness, until
from tests.harness.leader_proxy import LeaderProxy
from tests.harness.replication import StandbyNode, execute, running_pair

_SYNCHRONOUS = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
_AT_WORK = """
SELECT count(*) FROM pg_stat_activity
WHERE application_name LIKE 'taskherd%' AND wait_event IS DISTINCT FROM 'SyncRep'
"""
_NEXT_TRANSACTION = "SELECT CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint)"


@dataclass(frozen=True, slots=True)
class Pair:
    """A primary, its standby, and a harness that reaches whichever leads through a proxy."""

    primary: PostgresNode
    standby: StandbyNode
    proxy: LeaderProxy
    harness: ChaosHarness

    async def wait_for_standby(self) -> None:
        """Let all commits wait for the standby from now on."""
        await self._set("synchronous_standby_names", "*")
        await until(lambda: execute(self.primary.url, _SYNCHRONOUS), lambda count: count == 1)

    async def stop_vacuuming(self) -> None:
        """Have the primary begin no transactions of its own, so that its number of transactions says who wrote."""
        await self._set("autovacuum", "off")

    async def promote(self) -> None:
        """Let the standby take the place of the primary, which is killed or frozen."""
        self.proxy.lead(None)
        await asyncio.to_thread(self.standby.start)  # unless it is running
        await asyncio.to_thread(self.standby.promote)
        self.proxy.lead(urlsplit(self.standby.url).port)

    async def next_transaction_of_old_primary(self) -> int:
        """Return the id of the next transaction that writes, once no session from before goes on to work there.

        A commit that was under way waits for the standby for ever, and nobody is told that it succeeded.
        """
        await until(lambda: execute(self.primary.url, _AT_WORK), lambda count: count == 0)
        return int(await execute(self.primary.url, _NEXT_TRANSACTION))

    async def _set(self, name: str, value: str) -> None:
        await execute(self.primary.url, f"ALTER SYSTEM SET {name} = '{value}'")
        await execute(self.primary.url, "SELECT pg_reload_conf()")


@asynccontextmanager
async def replicated_pair(folder: Path, amqp_url: str) -> AsyncIterator[Pair]:
    """Run a primary that leads, and a standby that receives its changes asynchronously, until the end of the block."""
    proxy = LeaderProxy()
    await proxy.start()
    with running_pair(folder / "pair") as (primary, standby):
        address = urlsplit(primary.url)
        proxy.lead(address.port)
        url = primary.url.replace(f":{address.port}/", f":{proxy.port}/")
        await asyncio.to_thread(migrate.upgrade, url)
        async with chaos_harness(url, amqp_url, f"c{uuid.uuid4().hex[:8]}", folder) as harness:
            yield Pair(primary, standby, proxy, harness)
        await proxy.stop()
