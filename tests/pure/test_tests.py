"""Every test can fail: the mechanical ways to write one that cannot are forbidden, with a list of exceptions.

One of these ways is to give several tasks the same text: such a test passes when one is taken for another.
"""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

TESTS = Path(__file__).parents[1]

CHECKING_PREFIXES = ("until", "eventually", "check", "verify", "expect", "assert")
"""How the names of functions begin that fail a test themselves; anything else that a test calls only does something."""

CREATING = frozenset({"create", "active", "make_create", "task", "acp_task", "working"})
"""The names of the functions that create a task with the text in ``input`` or ``prompt``."""

ANY_ERROR = frozenset({"Exception", "BaseException"})
HIDING_NOQA = ("B017", "PT011", "PT012", "PT017", "F631", "B015", "B018")
"""ruff's rules about tests that cannot fail; no line may switch one off."""

ALLOWED: dict[str, dict[str, str]] = {
    "no check": {
        "test_every_manifest_is_valid": "kubernetes_validate raises for what is invalid",
        "test_the_image_runs_the_setup_commands": "docker() raises for a command that fails",
        **dict.fromkeys(
            (
                "test_a_worker_declares_a_deleted_queue_again",
                "test_nothing_is_lost_or_duplicated_by_kills_at_every_failpoint_in_turn",
                "test_nothing_is_lost_or_duplicated_by_repeated_kills_at_one_failpoint",
                "test_a_crash_loop_dead_letters_no_valid_message",
            ),
            "harness.finish() asserts that the ledger has no violations",
        ),
    },
    "early return": {
        "test_scenario": "records the scenario instead, if a variable asks for it; `make test` does not set it",
    },
    "tasks with the same text": dict.fromkeys(
        (
            "test_the_users_that_tasks_can_be_created_for",
            "test_an_invalid_create_is_rejected",
            "test_an_idempotency_key_creates_one_task",
        ),
        "the creates that are repeated are refused",
    ),
}
"""Tests that break a rule, with the reason why they can fail all the same."""


def body_of(test: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function, without those of the functions within it."""
    waiting = list(ast.iter_child_nodes(test))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def called_name(node: ast.AST) -> str:
    """Return the last part of the name of the function that is called, "" if the node is no call."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def is_check(node: ast.AST) -> bool:
    """Return whether a node may fail the test by itself."""
    name = called_name(node)
    return isinstance(node, ast.Assert) or name in {"raises", "fail"} or name.lstrip("_").startswith(CHECKING_PREFIXES)


def names_in(node: ast.expr) -> set[str]:
    """Return the names in an expression."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def acts(node: ast.expr) -> bool:
    """Return whether an expression may have another value the next time."""
    return any(isinstance(each, ast.Call | ast.Await | ast.NamedExpr) for each in ast.walk(node))


def empty_literal(node: ast.expr) -> bool:
    """Return whether an expression is an empty collection, so that a loop over it does nothing."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return not node.elts
    if isinstance(node, ast.Dict):
        return not node.keys
    if isinstance(node, ast.Call) and called_name(node) in {"range", "list", "tuple", "set", "dict"}:
        return not node.args or (
            called_name(node) == "range" and ast.unparse(node.args[0]) == "0" == ast.unparse(node.args[-1])
        )
    return False


def always_true(test: ast.expr) -> bool:
    """Return whether an asserted expression is true whatever the code does."""
    match test:
        case ast.Constant(value=value):
            true = bool(value)
        case ast.Tuple(elts=elements):
            true = bool(elements)
        case ast.BoolOp(op=ast.Or(), values=values):
            true = any(map(always_true, values))
        case ast.Compare(left=ast.Constant(value="" | b""), ops=[ast.In()]):
            true = True
        case ast.Compare(left=ast.Call(func=ast.Name(id="len")), ops=[ast.GtE()], comparators=[ast.Constant(value=0)]):
            true = True
        case ast.Compare(left=left, ops=[ast.Eq() | ast.Is() | ast.LtE() | ast.GtE()], comparators=[right]):
            true = ast.dump(left) == ast.dump(right) and not acts(left)
        case ast.Call(func=ast.Attribute(attr="startswith" | "endswith"), args=[ast.Constant(value="" | b"")]):
            true = True
        case _:
            true = False
    return true


def checked_outside_branches(body: list[ast.stmt]) -> bool:
    """Return whether statements have a check that is reached whichever branch is taken."""
    return any(map(_is_checked, body))


def _is_checked(statement: ast.stmt) -> bool:
    match statement:
        case ast.If():
            return checked_outside_branches(statement.body) and checked_outside_branches(statement.orelse)
        case ast.With() | ast.AsyncWith():
            nodes = (each for item in statement.items for each in ast.walk(item))
            return any(map(is_check, nodes)) or checked_outside_branches(statement.body)
        case ast.Try():
            return checked_outside_branches([*statement.body, *statement.orelse, *statement.finalbody])
        case ast.For() | ast.AsyncFor() | ast.While():
            return checked_outside_branches([*statement.body, *statement.orelse])
        case _:
            return any(map(is_check, [statement, *body_of(statement)]))


def text_of(node: ast.AST) -> str:
    """Return the constant text of the task that a call, or a request with these fields, creates, "" without one."""
    fields: dict[object, ast.expr] = {}
    match node:
        case ast.Call():
            fields = {each.arg: each.value for each in node.keywords}
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            fields = {key.value: value for key, value in pairs if isinstance(key, ast.Constant)}
        case _:
            pass
    text = fields.get("input") or fields.get("prompt")
    creates = "template_version_id" in fields or called_name(node) in CREATING
    return str(text.value) if creates and isinstance(text, ast.Constant) else ""


def texts_by_name(nodes: Iterable[ast.AST]) -> dict[str, str]:
    """Return the texts of tasks in the requests to which these nodes give names, by name."""
    found = {}
    for node in nodes:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict() as request)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Dict() as request)
            ):
                found[name] = text_of(request)
            case _:
                pass
    return found


def parts_repeated_by(node: ast.AST) -> list[ast.AST]:
    """Return the nodes that a loop or a comprehension carries out again and again."""
    match node:
        case ast.For() | ast.AsyncFor() | ast.While():
            return list(node.body)
        case ast.ListComp(elt=part) | ast.SetComp(elt=part) | ast.GeneratorExp(elt=part) | ast.DictComp(value=part):
            return [part]
        case _:
            return []


def tasks_share_a_text(test: ast.AST, shared: Mapping[str, str]) -> bool:
    """Return whether a test creates a task in a loop with a constant text, or two tasks with the same.

    ``shared`` are the texts of tasks in the requests of its module, by name.
    """
    names = {**shared, **texts_by_name(ast.walk(test))}
    repeated = (each for node in ast.walk(test) for part in parts_repeated_by(node) for each in ast.walk(part))
    in_loops = any(text_of(each) or names.get(getattr(each, "id", "")) for each in repeated)
    counts = Counter(filter(None, map(text_of, ast.walk(test))))
    return in_loops or any(count > 1 for count in counts.values())


def takes_time_for_a_wait(test: ast.AST) -> bool:
    """Return whether a test expects that tasks are not done after a time, as tasks that never began are not either."""
    bodies = (getattr(node, name, None) for node in ast.walk(test) for name in ("body", "orelse", "finalbody"))
    pairs = (pair for body in bodies if isinstance(body, list) for pair in pairwise(body))
    return any(_waits_a_time(first) and _expects_unfinished(second) for first, second in pairs)


def _waits_a_time(statement: ast.stmt) -> bool:
    match statement:
        case (
            ast.Expr(value=ast.Await(value=ast.Call() as call)) | ast.Assign(value=ast.Await(value=ast.Call() as call))
        ):
            return called_name(call) == "wait" and {each.arg for each in call.keywords} == {"timeout"}
        case _:
            return False


def _expects_unfinished(statement: ast.stmt) -> bool:
    match statement:
        case ast.Assert(test=ast.UnaryOp(op=ast.Not(), operand=ast.Name() | ast.Call() as operand)):
            return isinstance(operand, ast.Name) or called_name(operand) == "done"
        case _:
            return False


def problems_of(test: ast.FunctionDef | ast.AsyncFunctionDef, shared: Mapping[str, str]) -> set[str]:
    """Return the kinds of problems of a test; ``shared`` are the texts of tasks in the requests of its module."""
    nodes = list(body_of(test))
    found = {problem for node in ast.walk(test) if (problem := problem_of(node))}
    if not any(map(is_check, nodes)):
        found.add("no check")
    elif not checked_outside_branches(test.body):
        found.add("checks only in a branch")
    if any(isinstance(node, ast.Return) for node in nodes):
        found.add("early return")
    if tasks_share_a_text(test, shared):
        found.add("tasks with the same text")
    if takes_time_for_a_wait(test):
        found.add("takes time for a wait")
    return found


def problem_of(node: ast.AST) -> str:
    """Return the problem of a single node, "" if it has none."""
    problem = ""
    match node:
        case ast.Assert() if always_true(node.test):
            problem = "assertion that is always true"
        case ast.For() | ast.AsyncFor() if empty_literal(node.iter):
            problem = "loop over nothing"
        case ast.Call() if called_name(node) == "raises" and _errors(node) & ANY_ERROR:
            problem = "any error will do"
        case ast.Call() if called_name(node) == "suppress" and _errors(node) & {*ANY_ERROR, "AssertionError"}:
            problem = "failures are suppressed"
        case ast.With() | ast.AsyncWith() if _expects_error(node) and len(node.body) > 1:
            problem = "any of several statements may raise"
        case ast.ExceptHandler() if _hides_failure(node):
            problem = "failures are suppressed"
        case _:
            pass
    return problem


def _errors(call: ast.Call) -> set[str]:
    return {name for argument in call.args for name in names_in(argument)}


def _expects_error(block: ast.With | ast.AsyncWith) -> bool:
    return any(called_name(item.context_expr) == "raises" for item in block.items)


def _hides_failure(handler: ast.ExceptHandler) -> bool:
    names = names_in(handler.type) if handler.type else ANY_ERROR
    return bool(names & {*ANY_ERROR, "AssertionError"}) and not any(
        isinstance(each, ast.Raise) for each in ast.walk(handler)
    )


@cache
def sources() -> dict[str, str]:
    """Return the sources of all tests and their helpers, by path."""
    return {str(path.relative_to(TESTS)): path.read_text(encoding="utf-8") for path in sorted(TESTS.rglob("*.py"))}


parsed = cache(ast.parse)
"""Returns the syntax tree of a source."""


def functions_of(module: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return the test functions of a module."""
    functions = (each for each in module.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
    return [each for each in functions if each.name.startswith("test_")]


def problems_in(module: ast.Module) -> list[tuple[str, set[str]]]:
    """Return the name and the kinds of problems of each test of a module."""
    shared = texts_by_name(module.body)
    return [(test.name, problems_of(test, shared)) for test in functions_of(module)]


@pytest.mark.timeout(300)  # it computes all the time, of which a busy machine gives it little
def test_every_test_can_fail() -> None:
    """No test breaks a rule, except for those that ``ALLOWED`` names, and each of those does."""
    found: dict[str, set[str]] = {kind: set() for kind in ALLOWED}
    tests = [test for source in sources().values() for test in problems_in(parsed(source))]
    assert len(tests) > 800
    for name, problems in tests:
        for kind in problems:
            found.setdefault(kind, set()).add(name)
    assert {kind: names for kind, names in found.items() if names} == {
        kind: set(reasons) for kind, reasons in ALLOWED.items() if reasons
    }


def test_no_helper_accepts_any_error() -> None:
    """What a test leaves to a function that it calls expects a certain error, too."""
    lax = [
        f"{path}:{node.lineno}"
        for path, source in sources().items()
        for node in ast.walk(parsed(source))
        if isinstance(node, ast.Call) and problem_of(node) == "any error will do"
    ]
    assert lax == []


def test_no_rule_of_ruff_about_tests_is_switched_off() -> None:
    """These rules find what the test above does not, so a line that breaks one is written in another way."""
    hidden = [
        f"{path}: {line.strip()}"
        for path, source in sources().items()
        for line in source.splitlines()
        if "# noqa:" in line and any(rule in line.partition("# noqa:")[2] for rule in HIDING_NOQA)
    ]
    assert hidden == []


def test_nothing_is_mocked_by_a_library() -> None:
    """A mock accepts any call, so that a misspelled assertion about it passes."""
    importing = [path for path, source in sources().items() if "unittest.mock" in _imports(source)]
    assert importing == []


def _imports(source: str) -> set[str]:
    nodes = list(ast.walk(parsed(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    members = {
        f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    return names | modules | members


MODULE = "BODY = {'template_version_id': ID, 'input': 'Do that'}\n\ndef test_it():\n    "
"""A module up to the body of its only test."""


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("do()", "no check"),
        ("create(); publish()", "no check"),
        ("def inner():\n        assert do()\n    run(inner)", "no check"),
        ("if do():\n        assert it", "checks only in a branch"),
        ("if do():\n        assert it\n    else:\n        other()", "checks only in a branch"),
        ("for each in do():\n        if each:\n            assert it", "checks only in a branch"),
        ("if do():\n        return\n    assert it", "early return"),
        ("assert True", "assertion that is always true"),
        ("assert do() or True", "assertion that is always true"),
        ("assert (do(), 'it')", "assertion that is always true"),
        ("assert a.b == a.b", "assertion that is always true"),
        ("assert answer.startswith(b'')", "assertion that is always true"),
        ("assert '' in answer", "assertion that is always true"),
        ("assert len(answer) >= 0", "assertion that is always true"),
        ("for each in []:\n        assert each", "loop over nothing"),
        ("for each in range(0):\n        assert each", "loop over nothing"),
        ("with pytest.raises(Exception):\n        do()", "any error will do"),
        ("with pytest.raises((ValueError, BaseException)):\n        do()", "any error will do"),
        (
            "with pytest.raises(ValueError):\n        do()\n        raise ValueError",
            "any of several statements may raise",
        ),
        ("with suppress(AssertionError):\n        assert do()", "failures are suppressed"),
        ("try:\n        assert do()\n    except Exception:\n        pass", "failures are suppressed"),
        ("create(input='Do it')\n    assert active(input='Do it')", "tasks with the same text"),
        ("for _ in range(3):\n        assert create(input='Do it')", "tasks with the same text"),
        ("assert all(create(input='Do it') for _ in range(3))", "tasks with the same text"),
        (
            "body = {'template_version_id': ID, 'input': 'Do it'}\n    for _ in do():\n        assert post(body)",
            "tasks with the same text",
        ),
        ("assert [post(BODY) for _ in range(3)] == them", "tasks with the same text"),
        ("done, _ = await asyncio.wait({it}, timeout=1)\n    assert not done", "takes time for a wait"),
        ("if do():\n        await wait({it}, timeout=1)\n        assert not it.done()", "takes time for a wait"),
    ],
)
def test_each_rule_finds_what_it_forbids(body: str, problem: str) -> None:
    """A test that breaks a rule is found, and with the problem's name."""
    [(_, problems)] = problems_in(ast.parse(MODULE + body))
    assert problem in problems


@pytest.mark.parametrize(
    "body",
    [
        "assert do() == 1",
        "assert do() == do()",
        "with pytest.raises(ValueError):\n        do()",
        "await harness.until(lambda: do())",
        "if do():\n        assert it\n    else:\n        assert other",
        "if do():\n        assert it\n    assert other",
        "for each in (1, 2):\n        assert each",
        "try:\n        assert do()\n    finally:\n        close()",
        "def inner():\n        return 1\n    assert run(inner)",
        "create(input='Do it')\n    assert create(input='Do that')",
        "for number in range(3):\n        assert create(input=f'Do it {number}')",
        "for task in do():\n        assert send(task, input='Go on')",
        "assert post(BODY) == post(BODY)",
        "done, _ = await asyncio.wait({it}, timeout=1)\n    assert done",
        "await asyncio.wait({it})\n    assert not it.result()",
        "await asyncio.wait({it, end}, timeout=9, return_when=FIRST_COMPLETED)\n    assert not it.done()",
    ],
)
def test_a_test_that_can_fail_is_no_problem(body: str) -> None:
    """What the rules allow has no problem."""
    [(_, problems)] = problems_in(ast.parse(MODULE + body))
    assert problems == set()
