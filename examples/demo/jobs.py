"""The jobs of the demo's agents: the steps that each executes on this checkout."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import yaml

from examples.demo import steps as step_kinds
from examples.demo.steps import Step, StepResult

_MAX_PINS: Final = 12
"""Maximum number of installed dependencies to compare with the lock file."""
_QUICK_TESTS: Final = ("domain/test_names.py", "domain/test_inbox.py", "test_errors.py", "messages/test_texts.py")
_PIN: Final = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
_TYPO: Final = ("\ndef ", "\ndfe ")


def steps(job: str, root: Path) -> Sequence[Step]:
    """Return the steps of a job in the checkout ``root``. Raise ``KeyError`` for an unknown job."""
    return JOBS[job](root)


def source(root: Path) -> Path:
    """Return the folder of the package in a checkout."""
    return root / "src" / "taskherd"


def packages(root: Path) -> list[Path]:
    """Return the folders of taskherd's packages, sorted by name."""
    return sorted(folder.parent for folder in source(root).glob("*/__init__.py"))


def _each_package(verb: str, check: Callable[[Sequence[Path]], StepResult], root: Path) -> list[Step]:
    return [Step(f"{verb} {each.name}", partial(check, step_kinds.modules(each))) for each in packages(root)]


def _each_module(verb: str, check: Callable[[Path], StepResult], root: Path) -> list[Step]:
    paths = step_kinds.modules(source(root))
    return [Step(f"{verb} {path.relative_to(source(root))}", partial(check, path)) for path in paths]


def _lint(root: Path) -> list[Step]:
    if importlib.util.find_spec("ruff") is None:
        return _each_package("ruff is not installed; reading", step_kinds.compiled, root)
    ruff = ("-m", "ruff", "check", "--no-cache", "--output-format", "concise")
    return [step_kinds.python(f"ruff check {each.name}", root, *ruff, str(each)) for each in packages(root)]


def _tests(root: Path) -> list[Step]:
    if importlib.util.find_spec("pytest") is None:
        return _each_package("pytest is not installed; compiling", step_kinds.compiled, root)
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header")
    paths = [path for path in (root / "tests" / "pure" / name for name in _QUICK_TESTS) if path.exists()]
    return [step_kinds.python(f"pytest {path.name}", root, *pytest, str(path)) for path in paths]


def _lock(root: Path) -> list[Step]:
    path = root / "requirements.lock"
    pins = dict(_PIN.findall(path.read_text()))
    installed = [(name, pins[name]) for name in _direct(root) if name in pins]
    return [
        Step("hashing requirements.lock", partial(step_kinds.hashed, path)),
        Step(f"checking the hashes of {len(pins)} pins", partial(_hashes, path)),
        *[
            Step(f"comparing the installed {name} with {pin}", partial(_installed, name, pin))
            for name, pin in installed[:_MAX_PINS]
        ],
    ]


def _direct(root: Path) -> list[str]:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    return [re.split(r"[\[<>=~!; ]", each, maxsplit=1)[0] for each in requirements]


def _hashes(path: Path) -> StepResult:
    blocks = re.split(r"\n(?=[A-Za-z0-9])", path.read_text())
    pinned = [block for block in blocks if _PIN.match(block)]
    unhashed = [block.split()[0] for block in pinned if "--hash=sha256:" not in block]
    output = f"no hash: {', '.join(unhashed[:5])}" if unhashed else f"{len(pinned)} pins, all with hashes"
    return StepResult(not unhashed, output)


def _installed(name: str, pin: str) -> StepResult:
    installed = metadata.version(name)
    note = "as locked" if installed == pin else f"the lock file has {pin}"
    return StepResult(succeeded=True, output=f"{name} {installed}, {note}")


def _contract(root: Path) -> list[Step]:
    path = root / "docs" / "asyncapi.yaml"
    document: Any = yaml.safe_load(path.read_text())
    parts = [(f"{name}", document[name]) for name in ("channels", "operations")]
    parts += [(f"components/{name}", document["components"][name]) for name in ("messages", "schemas")]
    return [
        Step("hashing docs/asyncapi.yaml", partial(step_kinds.hashed, path)),
        *[Step(f"resolving the $refs of {name}", partial(_check_refs, document, part)) for name, part in parts],
        Step("comparing it with the models", partial(_compare_with_generated, root, path)),
    ]


def _check_refs(document: Any, part: Any) -> StepResult:
    unresolved = step_kinds.unresolved(document, part)
    return StepResult(
        not unresolved,
        f"unresolved: {', '.join(unresolved[:5])}" if unresolved else f"{len(part)} entries, every $ref resolves",
    )


def _compare_with_generated(root: Path, path: Path) -> StepResult:
    generated = step_kinds.python("", root, "-c", _GENERATED).do()
    same = hashlib.sha256(path.read_bytes()).hexdigest() == generated.output
    return StepResult(same, "identical" if same else "different: run `make docs`")


_GENERATED: Final = (
    "import hashlib; from taskherd.messages import asyncapi; "
    "print(hashlib.sha256(asyncapi.text().encode()).hexdigest())"
)


def _seeded(root: Path) -> list[Step]:
    """Return steps that compile copies of three modules, the last of which has a syntax error."""
    folder = Path(tempfile.mkdtemp(prefix="taskherd-drafts-"))
    drafts = []
    for number, path in enumerate(step_kinds.modules(source(root) / "domain")[-3:]):
        draft = folder / f"draft_{path.name}"
        text = path.read_text()
        draft.write_text(text.replace(*_TYPO, 1) if number == 2 else text)  # noqa: PLR2004 - the third of three
        drafts.append(draft)
    return [Step(f"compiling {draft.name}", partial(step_kinds.compiled, [draft])) for draft in drafts]


JOBS: Mapping[str, Callable[[Path], Sequence[Step]]] = {
    "compile": partial(_each_package, "compiling", step_kinds.compiled),
    "count": partial(_each_package, "counting", step_kinds.counted),
    "docstrings": partial(_each_package, "reading", step_kinds.documented),
    "tokens": partial(_each_module, "tokenizing", step_kinds.tokenized),
    "hashes": partial(_each_module, "hashing", step_kinds.hashed),
    "lint": _lint,
    "tests": _tests,
    "lock": _lock,
    "contract": _contract,
    "seeded": _seeded,
}
