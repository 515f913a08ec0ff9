"""The tested modules of the domain as one value, unchanged or with one part of the source of one module replaced."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

PACKAGE = "taskherd.domain"
MODULES = ("task", "fold", "view", "liveness", "builds", "interrupts", "agent_requests", "inbox")
"""In import order: each module imports only earlier ones."""


@dataclass(frozen=True, slots=True)
class Core:
    """The modules under test. Tests use them only through this value, so that a mutated module can take their place."""

    task: ModuleType
    fold: ModuleType
    view: ModuleType
    liveness: ModuleType
    builds: ModuleType
    interrupts: ModuleType
    agent_requests: ModuleType
    inbox: ModuleType


def unchanged_core() -> Core:
    """Return the unchanged modules."""
    return Core(**{name: import_module(f"{PACKAGE}.{name}") for name in MODULES})


def with_mutation(module: str, original: str, replacement: str) -> Core:
    """Return the modules with ``original``, which must occur exactly once in the source of ``module``, replaced.

    The modules that import ``module`` are compiled too, so that they use the mutated one.
    """
    core = {name: import_module(f"{PACKAGE}.{name}") for name in MODULES}
    original_modules = dict(sys.modules)
    try:
        for name in MODULES[MODULES.index(module) :]:
            path = Path(core[name].__file__ or "")
            source = path.read_text(encoding="utf-8")
            if name == module:
                found = source.count(original)
                assert found == 1, f"found {found} times in {module}: {original}"
                source = source.replace(original, replacement)
            core[name] = _compile(name, source, path)
    finally:
        sys.modules.update(original_modules)
    return Core(**core)


def _compile(name: str, source: str, path: Path) -> ModuleType:
    module = ModuleType(f"{PACKAGE}.{name}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    exec(compile(source, path, "exec"), module.__dict__)  # noqa: S102 - taskherd's own source with one part replaced
    return module
