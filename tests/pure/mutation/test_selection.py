"""The tests of a mutation are those that execute the line, or use what it defines."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.harness.isolation import MODES
from tests.mutation.coverage_map import SOURCE_READERS, TestMap
from tests.mutation.plugin import UNFIT
from tests.mutation.room import ROOT
from tests.mutation.selection import Selector, innermost, qualified_name
from tests.mutation.source import Mutation

CODE = '''"""Example."""

LIMIT = 3
QUERY = f"SELECT {LIMIT}"


class Reader:
    size: int = 4

    @property
    def half(self) -> int:
        return self.size // 2


def read():
    if QUERY:
        return QUERY
    return None


def select(number):
    return f"SELECT {number}"


ONE = select(1)


def read_one():
    return ONE
'''
USER = "from taskherd.store import example\n\n\ndef use():\n    return example.LIMIT\n"


@pytest.fixture
def selector(tmp_path: Path) -> Selector:
    """Return a selector for two modules and eight tests."""
    for name, text in {"store/example.py": CODE, "worker/user.py": USER}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    measured = TestMap()
    tests = {
        "tests/worker/test_user.py::test_use": 0.5,
        "tests/store/test_other.py::test_slow": 9.0,
        "tests/store/test_other.py::test_fast": 0.1,
        "tests/store/test_example.py::test_half": 2.0,
        "tests/pure/test_example.py::test_pure": 3.0,
        "tests/pure/test_docs.py::test_source": 0.1,
        "tests/store/test_one.py::test_select": 1.7,
        "tests/store/test_one.py::test_one": 1.5,
    }
    measured.seconds.update(tests)
    use, slow, fast, half, pure, source, select, one = tests
    measured.lines["store/example.py"] |= {3: {source}, 12: {half}, 16: {slow, fast, pure, source}, 17: {slow}}
    measured.lines["store/example.py"] |= {22: {select}, 29: {one}}
    measured.lines["worker/user.py"] |= {5: {use}}
    return Selector(tmp_path, measured)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (17, ["test_slow"]),
        (16, ["test_pure", "test_fast", "test_slow"]),
        (18, ["test_pure", "test_half"]),
        (4, ["test_pure", "test_half", "test_fast", "test_slow"]),
        (3, ["test_pure", "test_half", "test_fast", "test_use", "test_slow"]),
        (8, ["test_pure", "test_half"]),
        (10, ["test_pure", "test_half"]),
        (22, ["test_select", "test_one"]),
    ],
)
def test_tests_execute_the_line_or_use_its_definition(selector: Selector, line: int, expected: list[str]) -> None:
    """Those that execute it come first, and of them the pure and the fastest; tests that only read source are left out.

    A line that no test is known to execute has those of the files that are named after the module, and so has one
    outside of functions.
    """
    tests = selector.tests(Mutation("store/example.py", line, 0, 0, "", "constant"))
    assert [test.partition("::")[2] for test in tests] == expected


@pytest.mark.parametrize(
    ("pure", "others", "expected"), [(300, 3, (247, 3)), (300, 300, (150, 100)), (9, 400, (9, 241))]
)
def test_pure_tests_leave_room_for_others(tmp_path: Path, pure: int, others: int, expected: tuple[int, int]) -> None:
    """Of many tests as many are chosen as may be, and not only pure ones, which execute no SQL."""
    (tmp_path / "example.py").write_text("def read():\n    return 1\n")
    measured = TestMap()
    tests = [
        f"tests/{kind}/test_it.py::test_{n}" for kind, many in (("pure", pure), ("store", others)) for n in range(many)
    ]
    measured.seconds.update(dict.fromkeys(tests, 0.1))
    measured.lines["example.py"] |= {2: set(tests)}
    chosen = Selector(tmp_path, measured).tests(Mutation("example.py", 2, 0, 0, "", "constant"))
    assert (sum("/pure/" in test for test in chosen), sum("/store/" in test for test in chosen)) == expected


def test_tests_that_failed_on_unchanged_code_decide_nothing(selector: Selector) -> None:
    """A test that fails without the mutation says nothing about the mutation."""
    selector._measured.broken |= {"tests/store/test_other.py::test_slow", "tests/store/test_example.py::test_half"}
    assert selector.tests(Mutation("store/example.py", 17, 0, 0, "", "constant")) == [
        "tests/pure/test_example.py::test_pure"
    ]


def test_a_line_belongs_to_its_innermost_function() -> None:
    """A decorator and a default belong to what is around the function."""
    tree = ast.parse(CODE)
    names = {3: "", 8: "Reader", 10: "Reader.half", 12: "Reader.half", 17: "read"}
    assert {line: qualified_name(tree, line) for line in names} == names
    assert innermost(tree, 10)[1] is None


@pytest.mark.parametrize("entry", SOURCE_READERS)
def test_every_test_that_is_left_out_exists(entry: str) -> None:
    """An entry that names nothing would let a test that reads source code decide."""
    file, _, test = entry.partition("::")
    assert (ROOT / file).exists()
    assert f"def {test}" in (ROOT / file).read_text() if test else True


def test_what_is_left_out_in_a_sandbox_exists() -> None:
    """Only modes of isolation that need what a sandbox refuses are left out."""
    modes = {mode.name for mode in MODES}  # those that this machine has
    unfit = {name for name in modes if UNFIT.search(f"tests/runner/test_isolation.py::test_x[{name}-more]")}
    assert unfit == modes & {"users and bwrap", "cgroup", "ordinary user", "ordinary user, bwrap"}
