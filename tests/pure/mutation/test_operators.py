"""The operators change what they say, and nothing without behaviour."""

from __future__ import annotations

import ast

import pytest

from tests.mutation.operators import mutations
from tests.mutation.source import Source


def mutants(text: str) -> set[tuple[str, str]]:
    """Return the operator and the changed text of every mutation of a source."""
    return {(mutation.operator, mutation.apply(text)) for mutation in mutations(Source("worker/example.py", text))}


def function(body: str, returns: str = "int") -> str:
    """Return a function with this body."""
    return f"async def f(a: int, b: int) -> {returns}:\n    {body}\n"


@pytest.mark.parametrize(
    ("operator", "before", "after"),
    [
        ("comparison", "return a < b", "return a <= b"),
        ("comparison", "return a >= b", "return a > b"),
        ("comparison", "return a is not b", "return a is b"),
        ("comparison", "return a not in b", "return a in b"),
        ("comparison", "return 0 < a <= b", "return 0 < a < b"),
        ("boolean", "return a and b", "return a or b"),
        ("boolean", "return not a", "return  a"),
        ("dropped condition", "return a and b", "return a and True"),
        ("dropped condition", "return a or b", "return False or b"),
        ("negated condition", "return 1 if a else b", "return 1 if not (a) else b"),
        ("negated condition", "return [c for c in b if c]", "return [c for c in b if not (c)]"),
        ("constant", "return f(a, 3)", "return f(a, 4)"),
        ("constant", "return f(a, key=True)", "return f(a, key=False)"),
        ("arithmetic", "return a + b", "return a - b"),
        ("arithmetic", "a += b", "a -= b"),
        ("opposite", "return min(a, b)", "return max(a, b)"),
        ("swapped arguments", "return f(a, b)", "return f(b, a)"),
        ("dropped statement", "f(a)", "pass"),
        ("dropped statement", "await f(a)", "pass"),
        ("dropped statement", "self.a = b", "pass"),
        ("dropped statement", "raise ValueError(a)", "pass"),
        ("dropped await", "return await f(a)", "return f(a)"),
        ("sql construct", "return select(a).where(b)", "return select(a)"),
        ("exception", "with suppress(KeyError, OSError): f(a)", "with suppress(OSError,): f(a)"),
        ("sql lock", "return 'SELECT a FROM b FOR UPDATE'", "return 'SELECT a FROM b'"),
    ],
)
def test_an_operator_makes_its_change(operator: str, before: str, after: str) -> None:
    """Each operator replaces exactly the text that it is about, and leaves all other text as it is."""
    assert (operator, function(after)) in mutants(function(before))


@pytest.mark.parametrize(
    ("returns", "after"),
    [("bool", "not (g(a))"), ("int | None", "None"), ("list[int]", "[]"), ("str", '""')],
)
def test_a_returned_value_is_replaced_by_one_of_its_type(returns: str, after: str) -> None:
    """A value of another type would only show that types are checked."""
    assert function(f"return {after}", returns) in {text for _, text in mutants(function("return g(a)", returns))}


def test_an_exception_is_no_longer_handled() -> None:
    """A handler raises again, and handles one kind of error less."""
    text = "try:\n    f()\nexcept (KeyError, OSError):\n    g()\nfinally:\n    h()\n"
    changed = {mutated for operator, mutated in mutants(text) if operator == "exception"}
    assert changed == {
        text.replace("g()", "raise"),
        text.replace("(KeyError, OSError)", "(KeyError, )").replace("KeyError, )", "KeyError,)"),
        text.replace("(KeyError, OSError)", "(OSError,)"),
        text.replace("h()", "pass"),
    }


@pytest.mark.parametrize(
    "text",
    [
        '"""A docstring with 1 and 2."""\n',
        "from a import b\n",
        "if TYPE_CHECKING:\n    from a import b\n",
        "__all__ = ['a', 'b']\n",
        "def f(a: Annotated[int, 3]) -> Annotated[int, 4]: ...\n",
        "def __repr__(self):\n    return str(1 + 2)\n",
        "@dataclass(frozen=True, slots=True)\nclass A:\n    a: int\n",
        "log.warning('failed', count=1)\n",
        "waiting = asyncio.timeout(3)\n",
        "context.failpoint(Failpoint.A)\n",
        "assert a > 0\n",
        "CLOSE_TIMEOUT: Final = 5\n",
        "def f(a):\n    assert_never(a)\n",
    ],
)
def test_what_has_no_behaviour_is_not_mutated(text: str) -> None:
    """No test should have to notice a change of types, texts, logs or the length of a wait."""
    assert mutants(text) == set()


@pytest.mark.parametrize("name", ["min", "max"])
def test_arguments_whose_order_says_nothing_are_not_swapped(name: str) -> None:
    """The lesser or greater of two values is the same in any order."""
    operators = {operator for operator, _ in mutants(function(f"return {name}(a, b)"))}
    assert "swapped arguments" not in operators


def test_every_mutation_of_our_code_can_be_compiled() -> None:
    """A mutation that cannot be compiled would be drawn in vain."""
    from tests.mutation.room import ROOT  # noqa: PLC0415
    from tests.mutation.sample import all_mutations  # noqa: PLC0415

    root = ROOT / "src" / "taskherd"
    for mutation in all_mutations(root, "domain")[::7] + all_mutations(root, "store")[::17]:
        changed = mutation.apply((root / mutation.path).read_text(encoding="utf-8"))
        assert ast.dump(ast.parse(changed))
