"""What the alerts of a cluster read is what its members expose."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml

from taskherd.dev import ports
from tests.cluster.patroni import PatroniCluster
from tests.harness.chaos import until
from tests.harness.scrapes import Scrape, parse

PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus"
RULES = (PROMETHEUS / "rules" / "cluster.yml").read_text()
UNIT_TESTS = (PROMETHEUS / "tests" / "cluster.yml").read_text()
STANDBY = ("patroni_postgres_running", "patroni_replica", "patroni_postgres_streaming")

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


async def test_members_of_postgresql_expose_what_the_rules_read(cluster: PatroniCluster) -> None:
    """Each metric exists with the labels of the unit tests; standbys stream, and a healthy cluster alerts nobody."""
    leader = await cluster.until_healthy()
    read = {name for rule in _rules() for name in re.findall(r"\b(?:etcd|patroni)_\w+", rule["expr"])}
    assert read
    for member, member_of_etcd in zip(cluster.members, cluster.etcd, strict=True):
        etcd, patroni = [await _scrape(port) for port in (member_of_etcd.metrics_port, member.rest_port)]
        exposed = _labels(etcd) | _labels(patroni)
        assert read <= exposed.keys()
        for name, labels in _unit_test_series():
            assert labels == exposed[name], name
        assert _values(patroni, *STANDBY) == ([1, 0, 0] if member is leader else [1, 1, 1])
        size, quota = _values(etcd, "etcd_mvcc_db_total_size_in_bytes", "etcd_server_quota_backend_bytes")
        assert 0 < size < quota / 2


async def test_a_member_of_postgresql_that_is_lost_shows_in_the_metrics(cluster: PatroniCluster) -> None:
    """Where Patroni does not help, one whose PostgreSQL was killed does not run, and no other streams from it."""
    leader = await cluster.until_healthy()
    standbys = [member for member in cluster.members if member is not leader]
    await cluster.pause(paused=True)
    try:
        leader.kill_postgres()
        await until(partial(_scrape, leader.rest_port), lambda found: _values(found, STANDBY[0]) == [0], 60)
        for member in standbys:
            await until(partial(_scrape, member.rest_port), lambda found: _values(found, *STANDBY) == [1, 1, 0], 60)
    finally:
        await cluster.pause(paused=False)
    assert await cluster.until_healthy() in cluster.members


async def _scrape(port: int) -> Scrape:
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        return parse((await client.get(f"http://{ports.HOST}:{port}/metrics")).raise_for_status().text)


def _values(scrape: Scrape, *names: str) -> list[float]:
    """Return the value of each metric, which has one series."""
    return [value for name in names for (found, _), value in scrape.items() if found == name]


def _rules() -> list[dict[str, str]]:
    return [rule for group in yaml.safe_load(RULES)["groups"] for rule in group["rules"]]


def _labels(scrape: Scrape) -> dict[str, set[str]]:
    """Return the names of each metric's labels."""
    return {name: {label for label, _ in labels} for name, labels in scrape}


def _unit_test_series() -> list[tuple[str, set[str]]]:
    """Return metric and labels of each series of a member in the unit tests, without those that Prometheus adds."""
    texts = [each["series"] for test in yaml.safe_load(UNIT_TESTS)["tests"] for each in test["input_series"]]
    return [
        (text.partition("{")[0], set(re.findall(r'(\w+)="', text)) - {"job", "instance"})
        for text in texts
        if not text.startswith("up{")
    ]
