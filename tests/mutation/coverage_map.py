"""Which tests execute which lines: measured once per state of the tree, by running the tests folder by folder.

What one folder of tests executes is kept until the code, the harness or the folder changes. Measured are the processes
that the tests start, too; what a process executed before it was killed is not known.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import coverage

from tests.mutation.room import ROOT, WORK, Room, stop_all, tracked_files
from tests.mutation.startup import SUFFIX

FOLDERS = ("pure", "store", "broker", "cli", "worker", "api", "runner", "deploy")
"""The folders of tests that run; not the demo's and the campaigns', which take minutes for each."""

SHARED = ("src/", "pyproject.toml", "tests/conftest.py", "tests/harness/", "tests/mutation/startup.py")
"""What the tests of every folder depend on."""

SOURCE_READERS = (
    "tests/api/test_codersdk.py::test_the_document_shows",
    "tests/pure/api/test_openapi.py::test_the_stored_document",
    "tests/pure/domain/test_causes.py::test_every_finding",
    "tests/pure/domain/test_diagram.py",
    "tests/pure/domain/test_mutations.py",
    "tests/pure/messages/test_asyncapi.py::test_the_document_is_up_to_date",
    "tests/pure/mutation/",
    "tests/pure/test_architecture.py",
    "tests/pure/test_docs.py",
    "tests/pure/test_docstrings.py",
    "tests/pure/test_import_contracts.py",
    "tests/pure/test_library_drift.py",
    "tests/pure/test_outcomes.py::test_every_reason",
)
"""Tests that read source code or compare a generated document: that they fail says nothing about behaviour."""

FOLDER_TIME_LIMIT = 75 * 60
"""Maximum time in seconds for the tests of one folder."""

CONFIG = """[run]
branch = true
core = ctrace
concurrency = thread, greenlet
disable_warnings = no-data-collected, module-not-measured, module-not-imported, no-sysmon
source = {source}

[paths]
source =
    {root}/src/taskherd
    */rooms/*/src/taskherd
"""


@dataclass(slots=True)
class TestMap:
    """The tests that execute each line, and how long each test takes in seconds."""

    __test__ = False

    lines: dict[str, dict[int, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))
    seconds: dict[str, float] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    """Tests that failed on the unchanged code; they decide nothing."""

    def of_lines(self, path: str, first: int, last: int) -> set[str]:
        """Return the tests that execute a line of a range, both ends included."""
        lines = self.lines.get(path, {})
        return {test for line in range(first, last + 1) for test in lines.get(line, ())}


def measure(
    environment: Mapping[str, str], folders: Sequence[str], processes: int, say: Callable[[str], None]
) -> TestMap:
    """Return what the tests of these folders execute; run those whose result is not kept."""
    rooms: SimpleQueue[Room] = SimpleQueue()
    missing = [folder for folder in folders if not _outcomes(folder).exists()]
    for number in range(min(processes, len(missing))):
        rooms.put(Room(f"measure{number}"))

    def run(folder: str) -> None:
        room = rooms.get()
        try:
            say(f"running the tests of {folder} to see what they execute")
            _measure_folder(room, folder, environment)
        finally:
            rooms.put(room)

    with ThreadPoolExecutor(max(1, processes)) as pool:
        try:
            for done in [pool.submit(run, folder) for folder in missing]:
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop_all()
            raise
    result = TestMap()
    for folder in folders:
        _load(folder, result)
    return result


def _measure_folder(room: Room, folder: str, environment: Mapping[str, str]) -> None:
    outcomes_kept, data_kept = _outcomes(folder), _data(folder)  # before the tree can change
    room.prepare()
    measured = room.path / "coverage"
    measured.mkdir()
    (measured / "rc").write_text(CONFIG.format(source=room.path / "src" / "taskherd", root=ROOT))
    outcomes = measured / "outcomes.jsonl"
    arguments = ["-m", "pytest", "-q", "-p", "no:xdist", "-p", "tests.mutation.plugin", "-p", "no:cacheprovider"]
    selection = ["-m", "not chaos and not agents", "--timeout", "180", f"tests/{folder}"]
    ended = room.run([*arguments, *selection], {**environment, "MUTATION_OUTCOMES": str(outcomes)}, FOLDER_TIME_LIMIT)
    if ended.status not in (0, 1):  # all tests ran, and all passed or some failed
        raise SystemExit(f"the tests of {folder} did not run:\n{ended.output[-3_000:]}")
    for part in measured.glob(f"*{SUFFIX}"):
        with _opened(measured / f".coverage.{part.stem}") as written:
            written.loads(part.read_bytes())
    data = sorted(str(path) for path in measured.glob(".coverage.*"))
    data_kept.parent.mkdir(parents=True, exist_ok=True)
    combined = coverage.Coverage(data_file=str(data_kept), config_file=str(measured / "rc"))
    combined.combine(data, strict=True)
    combined.save()
    combined.get_data().close(force=True)
    shutil.copy2(outcomes, outcomes_kept)


def _load(folder: str, into: TestMap) -> None:
    """Add what was measured for a folder."""
    for line in _outcomes(folder).read_text().splitlines():
        record = json.loads(line)
        if "failed" in record:
            into.broken.add(record["failed"])
        else:
            into.seconds[record["test"]] = record["seconds"]
    with _opened(_data(folder)) as data:
        for file in data.measured_files():
            path = file.partition("/src/taskherd/")[2]
            for number, tests in data.contexts_by_lineno(file).items():
                into.lines[path][number].update(test for test in tests if test)


@contextmanager
def _opened(path: Path) -> Iterator[coverage.CoverageData]:
    """Yield what the file has, if it exists, and close it: nothing else does."""
    data = coverage.CoverageData(str(path))
    data.read()
    try:
        yield data
    finally:
        data.close(force=True)


def branch_coverage(folders: Sequence[str], packages: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the number of branches that were taken, and of all branches, of each package."""
    config = WORK / "report.rc"
    config.write_text(CONFIG.format(source=ROOT / "src" / "taskherd", root=ROOT))
    merged = coverage.Coverage(data_file=str(WORK / "merged.coverage"), config_file=str(config))
    merged.erase()
    merged.combine([str(_data(folder)) for folder in folders], strict=True, keep=True)
    data = merged.get_data()
    report = WORK / "report.json"
    merged.json_report(outfile=str(report))  # of a copy of the data
    for each in (data, merged.get_data()):
        each.close(force=True)
    counts = dict.fromkeys(packages, (0, 0))
    for file, measured in json.loads(report.read_text())["files"].items():
        package = file.partition("src/taskherd/")[2].split("/")[0]
        if package in counts:
            taken, all_branches = counts[package]
            summary = measured["summary"]
            counts[package] = (taken + summary["covered_branches"], all_branches + summary["num_branches"])
    return counts


def _outcomes(folder: str) -> Path:
    return WORK / "coverage" / f"{folder}-{_digest(folder)}.jsonl"


def _data(folder: str) -> Path:
    return WORK / "coverage" / f"{folder}-{_digest(folder)}.coverage"


def _digest(folder: str) -> str:
    """Return a digest of everything that what the tests of a folder execute depends on."""
    digest = hashlib.sha256()
    for name in tracked_files():
        if name.startswith((*SHARED, f"tests/{folder}/")):
            digest.update(f"{name}\0".encode() + hashlib.sha256((ROOT / name).read_bytes()).digest())
    return digest.hexdigest()[:16]
