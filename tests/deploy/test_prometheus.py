"""Alerting rules and dashboard: they work, use only metrics that exist, and link to the runbook."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import urllib.parse
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from taskherd.dev import ports
from tests.harness.api import token_for
from tests.harness.chaos import WorkerProcess, until
from tests.harness.programs import find_program
from tests.harness.worker import SECRET, VERSION, WorkerHarness, make_report

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
UNIT_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
DASHBOARD = ROOT / "deploy" / "grafana" / "taskherd.json"
PROCESSES = ("worker", "api", "runner")
AGENT = json.dumps({"command": ["echo", "Done"], "idle_after": 0.5})
NOWHERE = json.dumps({"pool": "nowhere"})
"""The ``run`` of a template whose pool has no runner, so that the test reports for the task."""
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
NAME = re.compile(r"\b(?:taskherd[_:]|process_)[a-z0-9_:]*")
FINE_WHEN_EMPTY = ("ALERTS",)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass(frozen=True, slots=True)
class Tools:
    """The paths of Debian's Prometheus programs."""

    prometheus: str
    promtool: str


@pytest.fixture(scope="session")
def tools(announce: Callable[[str], None]) -> Tools:
    """Return Prometheus and promtool of this machine; install them if they are missing."""
    return Tools(*(find_program(name, "prometheus", announce) for name in ("prometheus", "promtool")))


def rules() -> Iterator[dict[str, Any]]:
    """Yield every rule of every file."""
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def alerts() -> dict[str, dict[str, Any]]:
    """Return the alerts by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def panels() -> Iterator[tuple[str, str]]:
    """Yield title and expression of every query of the dashboard."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def test_promtool_accepts_the_rules_and_their_unit_tests_pass(tools: Tools) -> None:
    """``promtool`` accepts rules and configuration, and every unit test of the rules passes."""
    files = [str(path) for path in RULES]
    for arguments in (
        ["check", "rules", "--lint-fatal", *files],
        ["check", "config", str(PROMETHEUS / "prometheus.yml")],
    ):
        process = subprocess.run([tools.promtool, *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert process.returncode == 0, process.stdout + process.stderr
    tests = [str(path) for path in UNIT_TESTS]
    process = subprocess.run(
        [tools.promtool, "test", "rules", *tests], capture_output=True, text=True, timeout=60, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_every_alert_has_unit_tests_that_fire_and_that_do_not() -> None:
    """Each alert has a unit test in which it fires and one in which it does not."""
    names = {each["name"] for path in UNIT_TESTS for each in yaml.safe_load(path.read_text())["tests"]}
    assert names == {f"{alert} {word}" for alert in alerts() for word in ("fires", "does not fire")}


def test_the_jobs_have_the_names_that_alerts_select() -> None:
    """Those of compose and of the example in docs/operations.md are the same, and alerts have somewhere to go."""
    configured = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    jobs = {job["job_name"] for job in configured["scrape_configs"]}
    (block,) = re.findall(r"(?ms)^```text\n(scrape_configs:.*?)^```$", (ROOT / "docs" / "operations.md").read_text())
    assert {job["job_name"] for job in yaml.safe_load(block)["scrape_configs"]} == jobs
    for rule in alerts().values():
        assert set(re.findall(r'job="(taskherd-\w+)"', rule["expr"])) <= jobs
        assert all(set(each.split("|")) <= jobs for each in re.findall(r'job=~"([\w|]+)"', rule["expr"]))
    (files,) = configured["alerting"]["alertmanagers"][0]["file_sd_configs"]
    assert yaml.safe_load((PROMETHEUS / files["files"][0]).read_text()) == []


def test_every_alert_links_to_its_section_in_the_runbook() -> None:
    """Each alert links to a section of the runbook, which has no others, and the operations page lists each alert."""
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    operations = (ROOT / "docs" / "operations.md").read_text()
    headings = re.findall(r"(?m)^## (Taskherd\w+)$", runbook)
    assert sorted(headings) == sorted(alerts())
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        assert f"| [{name}](runbook.md#{name.lower()}) | {rule['annotations']['summary']} |" in operations
        assert rule["labels"]["severity"] in {"critical", "warning"}


def test_the_dashboard_has_five_sections_in_order() -> None:
    """From top to bottom: task progress, worker load, agent health, API speed, problems."""
    rows = [panel["title"] for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] == "row"]
    assert rows == [
        "Are tasks moving?",
        "Is the worker keeping up?",
        "Are agents healthy?",
        "Is the API fast?",
        "What is broken?",
    ]


class PrometheusServer:
    """A Prometheus that scrapes the processes of this test."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}/api/v1/"

    async def get(self, path: str, **query: str) -> Any:
        """Return the data of a response, which must be a success."""
        url = f"{self._base}{path}?{urllib.parse.urlencode(query)}"

        def fetch() -> Any:
            with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - the server of this test
                return json.load(response)

        document = await asyncio.to_thread(fetch)
        assert document["status"] == "success", document
        return document["data"]

    async def value(self, expression: str) -> list[Any]:
        """Return the current series of an expression."""
        series: list[Any] = (await self.get("query", query=expression))["result"]
        return series

    async def ready(self) -> bool:
        """Return whether the server answers."""
        try:
            await self.get("status/runtimeinfo")
        except OSError:
            return False
        return True

    async def names(self) -> set[str]:
        """Return the names of all metrics that the scraped processes declare, with the suffixes that queries use."""
        families = await self.get("targets/metadata")
        return {
            family["metric"].removesuffix("_total") + suffix
            for family in families
            for suffix in SUFFIXES.get(family["type"], ("",))
        } | {family["metric"] for family in families}


@pytest.fixture
async def scraped(tools: Tools, external: WorkerHarness, tmp_path: Path) -> AsyncIterator[PrometheusServer]:
    """Yield a Prometheus with the rules that scrapes a worker, an API and a runner, after some activity."""
    database_url, amqp_url = external.urls
    settings = {
        "TASKHERD_DATABASE_URL": database_url,
        "TASKHERD_AMQP_URL": amqp_url,
        "TASKHERD_AMQP_PREFIX": external.prefix,
        "TASKHERD_SECRET_KEY": SECRET,
        "TASKHERD_RUNNER_NAME": "r1",
        "TASKHERD_RUNNER_ROOT": str(tmp_path / "runner"),
    }
    port, http, *ops = ports.find_free([None] * (2 + len(PROCESSES)))
    settings["TASKHERD_API_PORT"] = str(http)
    started: list[asyncio.subprocess.Process] = []
    try:
        for process, number in zip(PROCESSES, ops, strict=True):
            environment = {**os.environ, **settings, "TASKHERD_OPS_PORT": str(number)}
            if process == "runner":  # as deployed: without database and key
                del environment["TASKHERD_DATABASE_URL"], environment["TASKHERD_SECRET_KEY"]
            with (tmp_path / f"{process}.log").open("wb") as log:
                started.append(
                    await asyncio.create_subprocess_exec(
                        sys.executable, "-m", "taskherd", process, env=environment, stdout=log, stderr=log
                    )
                )
        targets = {f"taskherd-{process}": number for process, number in zip(PROCESSES, ops, strict=True)}
        started.append(await _prometheus(tools, tmp_path, port, targets))
        server = PrometheusServer(port)
        await until(server.ready, bool, 30)
        await WorkerProcess(started[0], tmp_path / "worker.log").until_ready()
        await WorkerProcess(started[1], tmp_path / "api.log").until_ready()
        await until(lambda: server.value('min_over_time(taskherd_drained{job="taskherd-worker"}[1m])'), bool, 30)
        await _generate_activity(external, f"http://127.0.0.1:{http}/api/v2")
        yield server
    finally:
        for running in started:
            running.terminate()
        await asyncio.gather(*(running.wait() for running in started))


async def _prometheus(tools: Tools, folder: Path, port: int, targets: dict[str, int]) -> asyncio.subprocess.Process:
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in RULES],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{number}"]}]}
            for job, number in targets.items()
        ],
    }
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    words = (
        f"--config.file={path}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    with (folder / "prometheus.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(tools.prometheus, *words, stdout=log, stderr=log)


async def _generate_activity(harness: WorkerHarness, api: str) -> None:
    """Run a task through the API; create tasks of several states, a dead letter and a refused command."""
    statement = "UPDATE template_versions SET run = $1 WHERE id = $2"
    await harness.database.execute(statement, AGENT, VERSION)
    headers = {"Coder-Session-Token": await token_for(harness.urls[0], "alice")}
    async with httpx.AsyncClient(base_url=api, headers=headers, timeout=30) as client:
        response = await client.post("/tasks/me", json={"template_version_id": str(VERSION), "input": "Say so"})
        task = uuid.UUID(response.raise_for_status().json()["id"])
        await harness.until(lambda: harness.state(task).get("state") == "complete")
        assert (await client.get(f"/tasks/me/{task}")).is_success
    await harness.database.execute(statement, NOWHERE, VERSION)
    for _ in range(3):
        await harness.make_active()
    task = await harness.create()
    await harness.report(make_report("app.status", task, state="working", message="Reading"), {"type": "nonsense"})
    await harness.refused_command("task.pause", uuid.uuid4())


async def test_rules_and_dashboard_use_only_metrics_that_exist(scraped: PrometheusServer) -> None:
    """A Prometheus that scrapes real processes has each metric, each rule is healthy, and each panel shows data."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    expressions = [(rule.get("record") or rule["alert"], rule["expr"]) for rule in rules()] + list(panels())
    used = {name for _, expression in expressions for name in NAME.findall(expression)}
    await until(scraped.names, lambda names: used <= names | recorded, 30)

    groups = await until(lambda: scraped.get("rules"), lambda answer: all(
        rule["health"] == "ok" for group in answer["groups"] for rule in group["rules"]
    ), 30)  # fmt: skip
    assert {rule["name"] for group in groups["groups"] for rule in group["rules"]} == recorded | set(alerts())

    for title, expression in panels():
        series = await scraped.value(expression)
        if not expression.startswith(FINE_WHEN_EMPTY):
            series = await until(lambda query=expression: scraped.value(query), bool, 60)  # type: ignore[misc]
        assert series is not None, title
    letters = 'ALERTS{alertname="TaskherdDeadLetters", alertstate="firing"}'
    assert await until(lambda: scraped.value(letters), bool, 30)
