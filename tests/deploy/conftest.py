"""Tests of all that is shipped; files that need tools this machine lacks are not collected, the header lists them."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from tests.api.conftest import api_harness, start_api  # noqa: F401 - fixtures
from tests.deploy import docker
from tests.worker.conftest import external  # noqa: F401 - a fixture

collect_ignore: list[str] = []
_NOT_COLLECTED: dict[str, str] = {}

if docker.missing():
    _NOT_COLLECTED["test_image.py"] = docker.missing()
if not docker.has_services():
    _NOT_COLLECTED["test_compose.py"] = docker.missing() or "the images of RabbitMQ and PostgreSQL are missing"
if importlib.util.find_spec("helm_python") is None:
    _NOT_COLLECTED["test_helm.py"] = "the Helm library exists for Linux on x86-64 only"
if shutil.which("promtool") is None and shutil.which("apt-get") is None:
    _NOT_COLLECTED["test_prometheus.py"] = "neither promtool nor apt-get to install it"
if shutil.which("systemd-analyze") is None:
    _NOT_COLLECTED["test_systemd.py"] = "no systemd"
collect_ignore.extend(_NOT_COLLECTED)


def pytest_report_header() -> list[str]:
    """Return a line for each file that is not collected, with the reason."""
    return [f"tests/deploy/{name} not collected: {reason}" for name, reason in _NOT_COLLECTED.items()]


@pytest.fixture(scope="session")
async def image() -> str:
    """Return the name of the image, built from this checkout."""
    name = "taskherd:test"
    await docker.docker("build", "-q", "-t", name, ".", within=docker.BUILD_WITHIN)
    return name
