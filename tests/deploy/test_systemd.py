"""The systemd units are valid and restrict what the processes can do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from taskherd import durations
from taskherd.runner.privileges import MAX_PROCESSES
from taskherd.settings import Settings, unknown_variables

UNITS = sorted((Path(__file__).parents[2] / "deploy" / "systemd").glob("*.service"))
INSTALLED = "/opt/taskherd/bin/taskherd"
MAX_EXPOSURE = 4.0
"""Maximum exposure level, of 10; systemd calls up to 4 "OK"."""

every_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)


@pytest.fixture
def local_unit(unit: Path, tmp_path: Path) -> Path:
    """Return a copy of the unit that starts a program of this machine, because taskherd is not installed under /opt."""
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(INSTALLED, sys.executable))
    return copy


@every_unit
def test_systemd_accepts_the_unit(local_unit: Path) -> None:
    """``systemd-analyze verify`` reports no problem."""
    command = ["systemd-analyze", "verify", "--man=no", str(local_unit)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stdout + process.stderr) == (0, "")


@every_unit
def test_the_unit_is_hardened(local_unit: Path) -> None:
    """``systemd-analyze security`` reports an exposure of at most ``MAX_EXPOSURE``."""
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(local_unit)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    level = re.search(r"exposure level for \S+: ([0-9.]+)", process.stdout)
    assert level is not None, process.stderr
    assert float(level[1]) <= MAX_EXPOSURE


@every_unit
def test_the_unit_sets_known_settings_and_a_sufficient_stop_timeout(unit: Path) -> None:
    """All variables are settings, secrets come from files, and systemd waits longer than the grace period."""
    text = unit.read_text()
    variables = dict(
        word.split("=", 1) for line in re.findall(r"(?m)^Environment=(.*)$", text) for word in line.split()
    )
    process = unit.stem.removeprefix("taskherd-")
    assert unknown_variables(variables) == ()
    assert all(value.startswith("%d/") for name, value in variables.items() if name.endswith("_FILE"))
    if process != "migrate":
        stop = re.search(r"(?m)^TimeoutStopSec=(.*)$", text)
        assert stop is not None
        assert (
            durations.parse(variables["TASKHERD_GRACE"])
            == Settings.model_fields["grace"].default
            < durations.parse(stop[1])
        )


def test_one_agent_cannot_take_all_processes_of_a_runner() -> None:
    """A fork bomb leaves three quarters of those that the unit and the container may have to the others."""
    unit = next(unit.read_text() for unit in UNITS if unit.stem == "taskherd-runner")
    (tasks,) = re.findall(r"(?m)^TasksMax=(.*)$", unit)
    service = yaml.safe_load((UNITS[0].parents[1] / "compose.yaml").read_text())["services"]["runner"]
    assert min(int(tasks), service["pids_limit"]) >= 4 * MAX_PROCESSES


def test_the_units_allow_enough_open_files() -> None:
    """Those of the API suffice for all its connections; agents keep a soft limit that suits select(2)."""
    texts = {unit.stem: unit.read_text() for unit in UNITS}
    limits = {stem: re.findall(r"(?m)^LimitNOFILE=(.*)$", text) for stem, text in texts.items()}
    (api,) = limits["taskherd-api"]
    assert int(api) > 2 * Settings.model_fields["api_connections"].default
    assert limits["taskherd-runner"] == [f"1024:{api}"]
