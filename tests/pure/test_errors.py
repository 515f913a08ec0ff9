"""Errors are grouped by how to handle them."""

import pytest

from taskherd import errors
from taskherd.errors import Malformed, Misconfigured, TaskherdError


def test_misconfigured_names_all_wrong_settings() -> None:
    """An error about several settings has one line for each, with the expected value."""
    error = Misconfigured.several([("TASKHERD_A", "expected one"), ("TASKHERD_B", "expected two")])
    assert str(error) == "TASKHERD_A: expected one\nTASKHERD_B: expected two"
    assert (error.setting, error.expected) == ("TASKHERD_A", "expected one")
    assert error.wrong[1] == ("TASKHERD_B", "expected two")


@pytest.mark.parametrize(("detail", "text"), [("", "not_json"), ("line 1", "not_json: line 1")])
def test_malformed_keeps_its_reason(detail: str, text: str) -> None:
    """A malformed input has a stable reason, separate from the explanation for people."""
    error = Malformed("not_json", detail)
    assert (error.reason, error.detail, str(error)) == ("not_json", detail, text)


def test_the_docstring_draws_the_class_tree() -> None:
    """The tree in the module's docstring contains exactly the error classes."""
    kinds = {name for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, TaskherdError)}
    drawn = {word for word in (errors.__doc__ or "").split() if word.isidentifier() and word in vars(errors)}
    assert drawn == kinds
