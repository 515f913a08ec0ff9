"""What tests that start their own services have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskherd.dev import docker_engine

HOMES = ("rabbitmq", "postgres")
"""The folders of the two services in a data folder."""


@pytest.fixture(autouse=True)
def no_volume_is_left(tmp_path: Path) -> Iterator[None]:
    """Where the services are containers, their data outlive neither."""
    yield
    for data in (tmp_path, tmp_path / ".taskherd"):
        for home in HOMES:
            docker_engine.forget(data / home)
