"""The files of the cluster in deploy/: what can be checked of them without Docker, with the programs that read them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import text

from taskherd.settings import Settings
from taskherd.store import role_settings
from taskherd.store.engine import dispose, open_engine, transaction
from tests.harness.pgbouncer import StartPgBouncer, recommended_settings
from tests.harness.programs import find_program

DEPLOY = Path(__file__).parents[2] / "deploy"
CLUSTER = DEPLOY / "cluster"


class _Loader(yaml.SafeLoader):
    """YAML with the tags of Compose."""


def _override(loader: yaml.SafeLoader, node: Any) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("!override", _override)
COMPOSE: dict[str, Any] = yaml.load((DEPLOY / "compose.cluster.yaml").read_text(), _Loader)  # noqa: S506 - a SafeLoader


@pytest.mark.slow
def test_haproxy_accepts_its_configuration(announce: Callable[[str], None]) -> None:
    """HAProxy finds no error or warning in its configuration."""
    program = find_program("haproxy", "haproxy", announce)
    command = [program, "-c", "-f", str(CLUSTER / "haproxy.cfg")]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.slow
async def test_taskherd_works_behind_this_pgbouncer(start_pgbouncer: StartPgBouncer, database_url: str) -> None:
    """With these settings, PgBouncer takes the sessions of taskherd, once the role has its settings."""
    settings = recommended_settings()
    await role_settings.apply(database_url)
    async with start_pgbouncer(**settings) as bouncer:
        engine = open_engine(bouncer.url(pgbouncer=settings["pool_mode"]), size=2, application_name="tests")
        async with transaction(engine) as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
        await dispose(engine)


def test_every_secret_is_made_and_every_file_is_there() -> None:
    """``secrets.sh`` makes all secrets, and everything that containers mount exists."""
    script = (DEPLOY / "compose" / "secrets.sh").read_text()
    for secret in COMPOSE["secrets"].values():
        assert f"make {Path(secret['file']).name} " in script
    mounted = [volume for service in COMPOSE["services"].values() for volume in service.get("volumes", ())]
    for path in (volume.partition(":")[0] for volume in mounted if volume.startswith("./")):
        assert (DEPLOY / path).is_file(), path
    named = {volume.partition(":")[0] for volume in mounted if not volume.startswith("./")}
    assert named == set(COMPOSE["volumes"])


def test_the_url_says_what_pgbouncer_does() -> None:
    """The database URL names the pool mode of pgbouncer.ini."""
    url = re.search(r'make pgbouncer_url "(.*)"', (DEPLOY / "compose" / "secrets.sh").read_text())
    assert url is not None
    assert Settings(database_url=url[1].replace("$(cat postgres_password)", "x")).database_url
    assert "pool_mode = transaction" in (CLUSTER / "pgbouncer.ini").read_text()
    assert url[1].endswith("?pgbouncer=transaction")
