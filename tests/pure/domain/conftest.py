"""Fixtures of the domain's tests."""

import pytest

from tests.pure.domain.mutated_core import Core, unchanged_core


@pytest.fixture(scope="session")
def core() -> Core:
    """Return the unchanged modules; ``test_guards.py`` runs the same tests with one guard replaced."""
    return unchanged_core()
