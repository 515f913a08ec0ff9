"""How often a leader of etcd that was frozen, and goes on, ends leases that the other members have renewed.

::

    python -m tests.cluster.lost_leases [--freezes 30] [--busy 0]

Patroni's lock is valid as long as such a lease. ``--busy`` processes use CPU meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx

from tests.cluster.etcd import EtcdMember, start_all, until_leads
from tests.harness.programs import find_program

TTL: Final = 5
"""Seconds for which a lease is valid, unless it is renewed."""
RENEWED_EVERY: Final = 0.5
FROZEN_FOR: Final = 7.0
"""Seconds for which the leader stays frozen after another was elected."""
WATCHED_FOR: Final = 2.0
"""Seconds after it goes on within which it ends leases, if it does."""


class Etcd:
    """Three members, and a client of them."""

    def __init__(self, folder: Path, client: httpx.AsyncClient) -> None:
        self.members = [EtcdMember(f"etcd{number}", folder / f"etcd{number}") for number in range(3)]
        self._client = client

    def start(self) -> None:
        """Start all, and wait until they serve."""
        start_all(find_program("etcd", "etcd-server", _print), self.members)

    def stop(self) -> None:
        """Kill all."""
        for member in self.members:
            member.unfreeze()
            member.kill()

    async def ends_leases(self) -> bool:
        """Freeze the leader, and let it go on; return whether a lease has ended that another member has renewed."""
        leader = await until_leads(self.members, self._client)
        others = [member for member in self.members if member is not leader]
        lease = (await self._post(others[0], "lease/grant", {"TTL": TTL}))["ID"]
        renewing = asyncio.create_task(self._renew(others, lease))
        leader.freeze()
        try:
            await until_leads(others, self._client)
            await asyncio.sleep(FROZEN_FOR)
            assert await self._is_valid(others[0], lease), "a lease has ended before"
        finally:
            leader.unfreeze()
        await asyncio.sleep(WATCHED_FOR)
        renewing.cancel()
        return not await self._is_valid(others[0], lease)

    async def _renew(self, members: Sequence[EtcdMember], lease: str) -> None:
        while True:
            for member in members:
                with suppress(httpx.HTTPError):
                    await self._post(member, "lease/keepalive", {"ID": lease})
            await asyncio.sleep(RENEWED_EVERY)

    async def _is_valid(self, member: EtcdMember, lease: str) -> bool:
        return int((await self._post(member, "lease/timetolive", {"ID": lease})).get("TTL", 0)) > 0

    async def _post(self, member: EtcdMember, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self._client.post(f"{member.url}/v3/{path}", json=body)
        result: dict[str, Any] = answer.raise_for_status().json()
        return result


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def main() -> None:
    """Print how often leases were ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--freezes", type=int, default=30)
    parser.add_argument("--busy", type=int, default=0, help="number of processes that use CPU meanwhile")
    arguments = parser.parse_args()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.busy)]
    with tempfile.TemporaryDirectory(prefix="taskherd-etcd-", ignore_cleanup_errors=True) as folder:
        async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
            etcd = Etcd(Path(folder), client)
            try:
                etcd.start()
                ended = [await etcd.ends_leases() for _ in range(arguments.freezes)]
            finally:
                etcd.stop()
                for process in busy:
                    process.kill()
    _print(f"{len(ended)} times the leader of etcd was frozen and went on; {sum(ended)} times it ended others' leases")


if __name__ == "__main__":
    asyncio.run(main())
