"""The demo's directory: the example's people, and a template for each part that says how its agent is run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

import yaml

from examples.demo import agent, fixer
from examples.demo.scenarios import Role, Scenario
from taskherd.dev.agents import answers

POOL: Final = "demo"
TIMEOUT: Final = 12.0
"""Seconds that the agent which hangs may take in all."""
_CRASH_AFTER: Final = 4
_HANG_AFTER: Final = 3
_INHERIT: Final = ("PATH", "HOME", "LANG")


def template_id(job: str) -> UUID:
    """The id of a part's template, the same in every demo."""
    return uuid5(NAMESPACE_URL, f"taskherd-demo/{job}")


def version_id(job: str) -> UUID:
    """The id of its one version."""
    return uuid5(template_id(job), "v1")


def directory(example: Mapping[str, Any], parts: Sequence[Scenario], root: Path) -> str:
    """The directory file, as YAML; `root` is the checkout that the agents look at."""
    organization = example["organizations"][0]["name"]
    own = [
        {
            "id": str(template_id(part.job)),
            "organization": organization,
            "name": f"{POOL}-{part.job}",  # the example has names of its own
            "display_name": part.prompt,
            "active_version": str(version_id(part.job)),
            "versions": [{"id": str(version_id(part.job)), "name": "v1", "presets": [], "run": _run(part, root)}],
        }
        for part in parts
    ]
    return yaml.safe_dump({**example, "templates": [*example["templates"], *own]}, sort_keys=False)


def _run(part: Scenario, root: Path) -> dict[str, Any]:
    """How the agent of a part is run."""
    limits = {"timeout": TIMEOUT} if part.role is Role.HANGS else {}
    return {
        "pool": POOL,
        "command": [sys.executable, "-m", *_words(part, root)],
        "agent": "self" if part.role is Role.SELF_REPORTING else "stdio",
        "env": {"inherit": list(_INHERIT), "set": {"PYTHONPATH": _python_path(root)}},
        "limits": limits,
        "grace": "3s",
    }


def _python_path(root: Path) -> str:
    """Return a PYTHONPATH on which the agents find this package, which is not installed."""
    return os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])


def _words(part: Scenario, root: Path) -> list[str]:
    checking = [agent.__name__, "--root", str(root), "--job", part.job]
    match part.role:
        case Role.FIXES:
            return [fixer.__name__]
        case Role.SENT:
            return [answers.__name__, str(root / "src" / "taskherd")]
        case Role.SELF_REPORTING:
            return [*checking, "--over", "http"]
        case Role.CRASHES:
            return [*checking, "--crash-after", str(_CRASH_AFTER)]
        case Role.HANGS:
            return [*checking, "--hang-after", str(_HANG_AFTER)]
        case _:
            return checking
