"""What a folder of tests executes is measured in all its processes, as branches and not only as lines."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.mutation import coverage_map, report, room
from tests.mutation.coverage_map import branch_coverage, measure

CODE = """\
def size_of(number):
    if number > 2:
        return "many"
    if number > 1:
        return "two"
    if number > 0:
        return "one"
    return "none"
"""
UNUSED = """\
def count_down(number):
    while number:
        number -= 1
"""
TESTS = """\
import subprocess
import sys
import time

from coverage import CoverageData

from taskherd.domain.example import size_of
from tests.mutation.startup import MEASURED, SUFFIX

IMPORTS = "import os, signal; from taskherd.domain.example import size_of;"

def test_this_process():
    assert size_of(1) == "one"

def test_a_process_that_exits_at_once():
    subprocess.run([sys.executable, "-c", f"{IMPORTS} size_of(2); os._exit(0)"], check=True)

def test_a_process_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", f"{IMPORTS} size_of(3); signal.pause()"]) as process:
        try:
            ends_at = time.monotonic() + 60
            while 3 not in recorded_lines(process.pid):
                assert time.monotonic() < ends_at
                time.sleep(0.02)
        finally:
            process.kill()

def recorded_lines(pid):
    data = CoverageData(no_disk=True)
    for part in MEASURED.glob(f"{pid}-*{SUFFIX}"):
        data.loads(part.read_bytes())
    return {line for file in data.measured_files() for line in data.lines(file)}
"""
PACKAGES = ("src/taskherd", "src/taskherd/domain", "src/taskherd/store", "tests")
PYTEST = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "-p pytest_timeout"}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a small working tree measured instead of this one, without a sandbox, and return its folder."""
    folder = tmp_path / "tree"
    files = {
        "pyproject.toml": "[tool.pytest.ini_options]\naddopts = ['--import-mode=importlib']\n",
        "src/taskherd/domain/example.py": CODE,
        "src/taskherd/store/unused.py": UNUSED,
        "tests/example/test_example.py": TESTS,
        **{f"{package}/__init__.py": "" for package in PACKAGES},
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shutil.copytree(Path(room.__file__).parent, folder / "tests" / "mutation", ignore=shutil.ignore_patterns("*.pyc"))
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    for module in (room, coverage_map):
        monkeypatch.setattr(module, "ROOT", folder)
        monkeypatch.setattr(module, "WORK", tmp_path / "work")
        monkeypatch.setattr(module, "tracked_files", lambda: names)
    monkeypatch.setattr(room, "sandbox", lambda _writable: [])
    return folder


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("tree")
def test_branches_are_counted_in_all_processes_of_the_tests() -> None:
    """Also in one that ends without cleaning up, and in one that is killed; what nothing imports counts as not taken.

    Of the example one branch of six is not taken, but one line of eight not executed.
    """
    said: list[str] = []
    measured = measure(PYTEST, ["example"], 1, said.append)
    tests = "tests/example/test_example.py::test_{}".format
    assert measured.of_lines("domain/example.py", 3, 3) == {tests("a_process_that_is_killed")}
    assert measured.of_lines("domain/example.py", 5, 5) == {tests("a_process_that_exits_at_once")}
    assert measured.of_lines("domain/example.py", 7, 7) == {tests("this_process")}
    assert measured.of_lines("domain/example.py", 8, 8) == set()
    assert len(measured.seconds) == 3
    assert measured.broken == set()

    packages = ("domain", "store")
    branches = branch_coverage(["example"], packages)
    assert branches == {"domain": (5, 6), "store": (0, 2)}
    rows = [line.split("  ") for line in report.render([], branches, packages).splitlines()]
    shares = [(row[0].strip(), row[-1].strip()) for row in rows]
    assert shares == [("package", "branches"), ("domain", "83.3 %"), ("store", "0.0 %"), ("total", "62.5 %")]

    assert measure(PYTEST, ["example"], 1, said.append) == measured
    assert len(said) == 1  # what was measured is kept
