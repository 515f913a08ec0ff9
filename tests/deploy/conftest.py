"""What is shipped, run for real; what a machine can't do is not collected there, and the header says so."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from tests.deploy import docker
from tests.worker.conftest import alone  # noqa: F401 - a fixture

collect_ignore: list[str] = []
_NOT_HERE: dict[str, str] = {}

if docker.missing():
    _NOT_HERE["test_image.py"] = docker.missing()
if not docker.has_services():
    _NOT_HERE["test_compose.py"] = docker.missing() or "the images of RabbitMQ and PostgreSQL are not there"
if importlib.util.find_spec("helm_python") is None:
    _NOT_HERE["test_helm.py"] = "Helm's library is made for Linux on x86-64"
if shutil.which("promtool") is None and shutil.which("apt-get") is None:
    _NOT_HERE["test_prometheus.py"] = "neither promtool nor apt-get, which could install it"
if shutil.which("systemd-analyze") is None:
    _NOT_HERE["test_systemd.py"] = "no systemd"
collect_ignore.extend(_NOT_HERE)


def pytest_report_header() -> list[str]:
    """Say which files were not collected, and why."""
    return [f"tests/deploy/{name} not collected: {why}" for name, why in _NOT_HERE.items()]


@pytest.fixture(scope="session")
async def image() -> str:
    """The image, built from this very source."""
    name = "taskherd:test"
    await docker.docker("build", "-q", "-t", name, ".", within=docker.BUILD_WITHIN)
    return name
