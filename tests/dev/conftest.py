"""Fixtures of tests that start their own services."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskherd.dev import docker_engine

HOMES = ("rabbitmq", "postgres")
"""Subfolders of the two services in a data folder."""


@pytest.fixture(autouse=True)
def remove_volumes(tmp_path: Path) -> Iterator[None]:
    """Remove the volumes of services that ran in containers."""
    yield
    for data in (tmp_path, tmp_path / ".taskherd"):
        for home in HOMES:
            docker_engine.remove_volume(data / home)
