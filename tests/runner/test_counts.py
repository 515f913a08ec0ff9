"""The template of the example directory that needs nothing but taskherd."""

from __future__ import annotations

import os

import yaml

from tests.harness.runner import RunnerHarness
from tests.harness.templates import EXAMPLE


async def test_the_example_runs_where_path_does_not_lead_to_taskherd(harness: RunnerHarness) -> None:
    """As with a runner that was started by its path, or that pipx has installed."""
    (run,) = (
        version["run"]
        for each in yaml.safe_load(EXAMPLE.read_text())["templates"]
        for version in each["versions"]
        if each["name"] == "counts"
    )
    await harness.start(prefix=["env", f"PATH={os.defpath}"])
    await harness.template(run)
    task_id = await harness.worker.create()
    await harness.until_state(task_id, "idle", "Which package?")
