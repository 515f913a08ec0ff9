"""The demo's directory: the users of the example, and a template for each scenario that defines its agent."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

import yaml

from examples import acp_agent
from examples.demo import agent, fixer
from examples.demo.scenarios import Role, Scenario
from taskherd.dev.agents import answers

POOL: Final = "demo"
HANGING_TIMEOUT: Final = 12.0
"""Seconds after which the runner stops the agent that hangs (``limits.timeout``)."""
_CRASH_AFTER: Final = 4
_HANG_AFTER: Final = 3
_INHERIT: Final = ("PATH", "HOME", "LANG")
_KINDS: Final[Mapping[Role, Mapping[str, Any]]] = {
    Role.SELF_REPORTING: {"agent": "self"},
    Role.ASKS: {"agent": "acp", "complete_after_turn": True},
    Role.INTERRUPTED: {"agent": "acp", "approvals": {"default": "allow"}},
}
"""How the runner follows an agent that is not of kind ``stdio``."""


def template_id(job: str) -> UUID:
    """Return the id of a job's template, the same in every demo."""
    return uuid5(NAMESPACE_URL, f"taskherd-demo/{job}")


def version_id(job: str) -> UUID:
    """Return the id of the only version of a job's template."""
    return uuid5(template_id(job), "v1")


def directory(example: Mapping[str, Any], scenarios: Sequence[Scenario], root: Path) -> str:
    """Return the directory file as YAML; ``root`` is the checkout that the agents check."""
    organization = example["organizations"][0]["name"]
    demo_templates = [
        {
            "id": str(template_id(scenario.job)),
            "organization": organization,
            "name": f"{POOL}-{scenario.job}",  # must differ from the names in the example
            "display_name": f"Demo: {scenario.job}",
            "active_version": str(version_id(scenario.job)),
            "versions": [
                {"id": str(version_id(scenario.job)), "name": "v1", "presets": [], "run": _run(scenario, root)}
            ],
        }
        for scenario in scenarios
    ]
    return yaml.safe_dump({**example, "templates": [*example["templates"], *demo_templates]}, sort_keys=False)


def _run(scenario: Scenario, root: Path) -> dict[str, Any]:
    """Return the ``run`` definition of a scenario's template."""
    limits = {"timeout": HANGING_TIMEOUT} if scenario.role is Role.HANGS else {}
    return {
        "pool": POOL,
        "command": [sys.executable, "-m", *_arguments(scenario, root)],
        **_KINDS.get(scenario.role, {"agent": "stdio"}),
        "env": {"inherit": list(_INHERIT), "set": {"PYTHONPATH": _python_path(root)}},
        "limits": limits,
        "grace": "3s",
    }


def _python_path(root: Path) -> str:
    """Return a PYTHONPATH with this package, which is not installed."""
    return os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])


def _arguments(scenario: Scenario, root: Path) -> list[str]:
    checking = [agent.__name__, "--root", str(root), "--job", scenario.job]
    options: Mapping[Role, Sequence[str]] = {
        Role.SELF_REPORTING: ("--over", "http"),
        Role.CRASHES: ("--crash-after", str(_CRASH_AFTER)),
        Role.HANGS: ("--hang-after", str(_HANG_AFTER)),
    }
    match scenario.role:
        case Role.FIXES:
            return [fixer.__name__]
        case Role.ANSWERS:
            return [answers.__name__, str(root / "src" / "taskherd")]
        case Role.ASKS | Role.INTERRUPTED:
            return [acp_agent.__name__]
        case _:
            return [*checking, *options.get(scenario.role, ())]
