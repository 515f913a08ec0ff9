"""Scrapes of real processes, and the series of Prometheus' unit tests that follow from two of them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.harness import fork_server
from tests.harness.fork_server import RunningProcess
from tests.harness.worker import SECRET, WorkerHarness

TIMEOUT = 60.0
"""Maximum time in seconds until what a test waits for shows in a scrape; generous, because the machine may be busy."""

Series: TypeAlias = tuple[str, frozenset[tuple[str, str]]]
"""A metric's name, and its labels."""

Scrape: TypeAlias = Mapping[Series, float]


def series(name: str, **labels: str) -> Series:
    """Return the key of a series in a scrape."""
    return name, frozenset(labels.items())


def parse(text: str) -> Scrape:
    """Parse the text of a scrape."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@dataclass
class ScrapedProcess:
    """A running ``taskherd worker``, ``api`` or ``runner``."""

    role: str
    log: Path
    process: RunningProcess

    @classmethod
    async def start(cls, role: str, folder: Path, harness: WorkerHarness, **settings: str) -> ScrapedProcess:
        """Start a process on the harness's database and broker, and wait until it can be scraped."""
        database_url, amqp_url = harness.urls
        defaults = {
            "amqp_url": amqp_url,
            "amqp_prefix": harness.prefix,
            "ops_port": "0",
            "log_format": "json",
            "runner_name": "r1",
            "runner_root": str(folder / "r1"),
            "sweep_every": "200ms",
            "tasks_running_most": "0",
            "probe_every": "200ms",
        }
        if role != "runner":  # as deployed: without database and key
            defaults |= {"database_url": database_url, "secret_key": SECRET, "api_port": "0"}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("TASKHERD_")}
        environment = {f"TASKHERD_{key.upper()}": value for key, value in {**defaults, **settings}.items()}
        log = folder / f"{role}.log"
        with log.open("wb") as output:
            process = await fork_server.start(role, {**inherited, **environment}, output=output, errors=output)
        started = cls(role, log, process)
        await started.until(lambda _: True)
        return started

    def logged(self, name: str) -> object:
        """Return the first value of this field in the log, None if no line has it."""
        for line in self.log.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                record = json.loads(line)
                if name in record:
                    return record[name]
        assert self.process.returncode is None, self.log.read_text()
        return None

    async def until(self, holds: Callable[[Scrape], bool]) -> Scrape:
        """Scrape until the scrape meets the condition, and return it."""
        scrape: Scrape = {}
        try:
            async with asyncio.timeout(TIMEOUT), httpx.AsyncClient(timeout=10, trust_env=False) as client:
                while True:
                    port = self.logged("ops_port")
                    with suppress(httpx.TransportError):
                        if port:
                            scrape = parse((await client.get(f"http://127.0.0.1:{port}/metrics")).text)
                            if holds(scrape):
                                return scrape
                    await asyncio.sleep(0.1)
        except TimeoutError:
            shown = {key: value for key, value in scrape.items() if value and not key[0].endswith("_bucket")}
            raise AssertionError(f"{self.log.read_text()[-3000:]}\n{shown}") from None

    async def until_value(self, value: float, name: str, **labels: str) -> Scrape:
        """Scrape until the series has this value, and return the scrape."""
        return await self.until(lambda scrape: scrape.get(series(name, **labels)) == value)

    async def stop(self) -> None:
        """Stop the process, by force if it does not end in time."""
        if self.process.returncode is None:
            self.process.terminate()
            try:
                async with asyncio.timeout(20):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
