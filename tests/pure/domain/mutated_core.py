"""The core's modules as one value, as they are or with one guard taken out of the source of one of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

PACKAGE = "taskherd.domain"
MODULES = ("task", "fold", "view", "liveness", "builds", "inbox")
"""In the order in which they import each other."""


@dataclass(frozen=True, slots=True)
class Core:
    """The modules that a test of the core speaks to; it gets at them through here, so that a guard can be missing."""

    task: ModuleType
    fold: ModuleType
    view: ModuleType
    liveness: ModuleType
    builds: ModuleType
    inbox: ModuleType


def whole() -> Core:
    """The core as it is."""
    return Core(**{organ: import_module(f"{PACKAGE}.{organ}") for organ in MODULES})


def without(organ: str, guard: str, instead: str) -> Core:
    """The core with ``guard``, which stands exactly once in the source of ``organ``, replaced by ``instead``.

    The modules that import ``organ`` are compiled anew too, so that they see the changed one.
    """
    core = {name: import_module(f"{PACKAGE}.{name}") for name in MODULES}
    kept = dict(sys.modules)
    try:
        for name in MODULES[MODULES.index(organ) :]:
            path = Path(core[name].__file__ or "")
            source = path.read_text(encoding="utf-8")
            if name == organ:
                assert source.count(guard) == 1, f"the guard stands {source.count(guard)} times in {organ}: {guard}"
                source = source.replace(guard, instead)
            core[name] = _compiled(name, source, path)
    finally:
        sys.modules.update(kept)
    return Core(**core)


def _compiled(name: str, source: str, path: Path) -> ModuleType:
    module = ModuleType(f"{PACKAGE}.{name}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    exec(compile(source, path, "exec"), module.__dict__)  # noqa: S102 - our own source, one guard changed
    return module
