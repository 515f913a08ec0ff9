"""The jobs of the demo's agents: what steps each takes over this checkout."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, Final

import yaml

from examples.demo import steps as step_kinds
from examples.demo.steps import Step, StepResult

_FEW: Final = 12
_QUICK_TESTS: Final = ("domain/test_names.py", "domain/test_inbox.py", "test_errors.py", "messages/test_texts.py")
_PIN: Final = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
_MISTAKE: Final = ("\ndef ", "\ndfe ")


def steps(job: str, root: Path) -> Sequence[Step]:
    """The steps of a job in the checkout `root`; raises KeyError for a job that there is not."""
    return JOBS[job](root)


def source(root: Path) -> Path:
    """Where the package is in a checkout."""
    return root / "src" / "taskherd"


def packages(root: Path) -> list[Path]:
    """The packages of taskherd, sorted by name."""
    return sorted(folder.parent for folder in source(root).glob("*/__init__.py"))


def _each_package(verb: str, check: Callable[[Sequence[Path]], StepResult], root: Path) -> list[Step]:
    return [Step(f"{verb} {each.name}", partial(check, step_kinds.modules(each))) for each in packages(root)]


def _each_module(verb: str, check: Callable[[Path], StepResult], root: Path) -> list[Step]:
    found = step_kinds.modules(source(root))
    return [Step(f"{verb} {path.relative_to(source(root))}", partial(check, path)) for path in found]


def _lint(root: Path) -> list[Step]:
    if importlib.util.find_spec("ruff") is None:
        return _each_package("ruff is not installed; reading", step_kinds.compiled, root)
    ruff = ("-m", "ruff", "check", "--no-cache", "--output-format", "concise")
    return [step_kinds.python(f"ruff check {each.name}", root, *ruff, str(each)) for each in packages(root)]


def _migrations(root: Path) -> list[Step]:
    folder = source(root) / "store" / "migrations"
    found = sorted((folder / "versions").glob("[0-9]*.py"))
    parsed = [Step(f"parsing {path.name}", partial(step_kinds.migration, path)) for path in found]
    compiled = [Step(f"compiling {path.name}", partial(step_kinds.compiled, [path])) for path in found]
    hashed = [Step(f"hashing {path.name}", partial(step_kinds.hashed, path)) for path in found]
    return [
        *parsed,
        *compiled,
        *hashed,
        Step("counting the store", partial(step_kinds.counted, step_kinds.modules(folder))),
    ]


def _tests(root: Path) -> list[Step]:
    if importlib.util.find_spec("pytest") is None:
        return _each_package("pytest is not installed; compiling", step_kinds.compiled, root)
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header")
    found = [path for path in (root / "tests" / "pure" / name for name in _QUICK_TESTS) if path.exists()]
    return [step_kinds.python(f"pytest {path.name}", root, *pytest, str(path)) for path in found]


def _lock(root: Path) -> list[Step]:
    path = root / "requirements.lock"
    pins = dict(_PIN.findall(path.read_text()))
    installed = [(name, pins[name]) for name in _direct(root) if name in pins]
    return [
        Step("hashing requirements.lock", partial(step_kinds.hashed, path)),
        Step(f"every one of {len(pins)} pins has hashes", partial(_hashes, path)),
        *[Step(f"is {name} {pin} installed", partial(_installed, name, pin)) for name, pin in installed[:_FEW]],
    ]


def _direct(root: Path) -> list[str]:
    wanted = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    return [re.split(r"[\[<>=~!; ]", each, maxsplit=1)[0] for each in wanted]


def _hashes(path: Path) -> StepResult:
    blocks = re.split(r"\n(?=[A-Za-z0-9])", path.read_text())
    pinned = [block for block in blocks if _PIN.match(block)]
    bare = [block.split()[0] for block in pinned if "--hash=sha256:" not in block]
    return StepResult(not bare, f"no hash: {', '.join(bare[:5])}" if bare else f"{len(pinned)} pins, all with hashes")


def _installed(name: str, pin: str) -> StepResult:
    found = metadata.version(name)
    note = "as locked" if found == pin else f"the lock says {pin}"
    return StepResult(succeeded=True, output=f"{name} {found}, {note}")


def _contract(root: Path) -> list[Step]:
    path = root / "docs" / "asyncapi.yaml"
    document: Any = yaml.safe_load(path.read_text())
    parts = [(f"{name}", document[name]) for name in ("channels", "operations")]
    parts += [(f"components/{name}", document["components"][name]) for name in ("messages", "schemas")]
    return [
        Step("hashing docs/asyncapi.yaml", partial(step_kinds.hashed, path)),
        *[Step(f"following the $refs of {name}", partial(_resolved, document, part)) for name, part in parts],
        Step("comparing it with the models", partial(_as_generated, root, path)),
    ]


def _resolved(document: Any, part: Any) -> StepResult:
    lost = step_kinds.unresolved(document, part)
    return StepResult(
        not lost, f"lead nowhere: {', '.join(lost[:5])}" if lost else f"{len(part)} entries, every $ref resolves"
    )


def _as_generated(root: Path, path: Path) -> StepResult:
    told = step_kinds.python("", root, "-c", _GENERATED).do()
    same = hashlib.sha256(path.read_bytes()).hexdigest() == told.output
    return StepResult(same, "the same, byte for byte" if same else "differs: run `make docs`")


_GENERATED: Final = (
    "import hashlib; from taskherd.messages import asyncapi; "
    "print(hashlib.sha256(asyncapi.text().encode()).hexdigest())"
)


def _layers(root: Path) -> list[Step]:
    """The layers as pyproject.toml draws them: a package may import what stands below it, and itself."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rows = [re.findall(r"taskherd\.(\w+)", row) for row in contracts[0]["layers"]]
    below = {
        name: frozenset([name, *chain.from_iterable(rows[depth + 1 :])])
        for depth, row in enumerate(rows)
        for name in row
    }
    return [
        Step(f"imports of {each.name}", partial(step_kinds.imported, step_kinds.modules(each), below[each.name]))
        for each in packages(root)
        if each.name in below
    ]


def _seeded(root: Path) -> list[Step]:
    """Drafts of three modules in a temporary folder; in the last, a line is really broken."""
    folder = Path(tempfile.mkdtemp(prefix="taskherd-drafts-"))
    drafts = []
    for number, path in enumerate(step_kinds.modules(source(root) / "domain")[-3:]):
        draft = folder / f"draft_{path.name}"
        text = path.read_text()
        draft.write_text(text.replace(*_MISTAKE, 1) if number == 2 else text)  # noqa: PLR2004 - the third of three
        drafts.append(draft)
    return [Step(f"compiling {draft.name}", partial(step_kinds.compiled, [draft])) for draft in drafts]


JOBS: Mapping[str, Callable[[Path], Sequence[Step]]] = {
    "compile": partial(_each_package, "compiling", step_kinds.compiled),
    "count": partial(_each_package, "counting", step_kinds.counted),
    "docstrings": partial(_each_package, "reading", step_kinds.documented),
    "tokens": partial(_each_module, "tokenising", step_kinds.tokenised),
    "hashes": partial(_each_module, "hashing", step_kinds.hashed),
    "lint": _lint,
    "migrations": _migrations,
    "tests": _tests,
    "lock": _lock,
    "contract": _contract,
    "layers": _layers,
    "seeded": _seeded,
}
