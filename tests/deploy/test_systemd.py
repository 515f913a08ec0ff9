"""The systemd units: systemd itself accepts them, and finds them closed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from taskherd.settings import Settings, durations, unknown_variables

UNITS = sorted((Path(__file__).parents[2] / "deploy" / "systemd").glob("*.service"))
INSTALLED = "/opt/taskherd/bin/taskherd"
MAX_EXPOSURE = 4.0
"""Of 10; systemd calls up to 4 "OK"."""

every_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)


@pytest.fixture
def here(unit: Path, tmp_path: Path) -> Path:
    """The unit, with a program of this machine in place of ours."""
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(INSTALLED, sys.executable))
    return copy


@every_unit
def test_systemd_accepts_the_unit(here: Path) -> None:
    """`systemd-analyze verify` has nothing to say."""
    command = ["systemd-analyze", "verify", "--man=no", str(here)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@every_unit
def test_the_unit_is_closed(here: Path) -> None:
    """`systemd-analyze security` finds little that the process could do beside its work."""
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(here)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) <= MAX_EXPOSURE


@every_unit
def test_the_unit_gives_settings_that_there_are_and_time_to_end(unit: Path) -> None:
    """Its variables are settings, its secrets are files, and systemd waits longer than the process needs."""
    text = unit.read_text()
    named = dict(word.split("=", 1) for line in re.findall(r"(?m)^Environment=(.*)$", text) for word in line.split())
    process = unit.stem.removeprefix("taskherd-")
    assert unknown_variables(named) == ()
    assert all(value.startswith("%d/") for name, value in named.items() if name.endswith("_FILE"))
    if process != "migrate":
        stop = re.search(r"(?m)^TimeoutStopSec=(.*)$", text)
        assert stop is not None
        assert (
            durations.parse(named["TASKHERD_GRACE"])
            == Settings.model_fields["grace"].default
            < durations.parse(stop[1])
        )
