"""What is shipped stops runners so that no agent is lost: the modes, names, folders and times fit together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from taskherd import durations
from taskherd.settings import Settings

ROOT = Path(__file__).parents[2]
GRACE: float = Settings.model_fields["grace"].default


def test_the_image_pauses_agents() -> None:
    """The image sets the mode for containers, and stops with the signal that the runner handles."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.search(r"(?m)^\s+TASKHERD_RUNNER_DRAIN=pause$", dockerfile)
    assert "\nSTOPSIGNAL SIGTERM\n" in dockerfile
    assert '\nENTRYPOINT ["taskherd"]\n' in dockerfile, "a shell would not pass signals on"


def test_compose_gives_the_runner_time_a_name_and_a_volume() -> None:
    """The next container has the same name and disk; an image of one's own cannot change the signal."""
    compose: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    runner = compose["services"]["runner"]
    assert runner["stop_signal"] == "SIGTERM"
    assert durations.parse(runner["stop_grace_period"]) > GRACE
    assert runner["environment"]["TASKHERD_RUNNER_NAME"]
    assert "TASKHERD_RUNNER_DRAIN" not in runner["environment"], "the image sets it"
    assert "runner:/var/lib/taskherd" in runner["volumes"]
    workdir = re.search(r"(?m)^WORKDIR (/var/.*)$", (ROOT / "Dockerfile").read_text())
    assert workdir is not None
    assert workdir[1] == "/var/lib/taskherd"
    assert not Path(Settings.model_fields["runner_root"].default).is_absolute(), "it is below the WORKDIR"


def test_the_systemd_unit_lets_agents_outlive_the_runner() -> None:
    """Systemd stops only the runner itself, which leaves its agents to the next one."""
    unit = (ROOT / "deploy" / "systemd" / "taskherd-runner.service").read_text()
    settings = dict(re.findall(r"(?m)^(\w+)=(.*)$", unit))
    assert settings["KillMode"] == "process"
    assert "\nEnvironment=TASKHERD_RUNNER_DRAIN=keep\n" in unit
    assert durations.parse(settings["TimeoutStopSec"]) > GRACE
