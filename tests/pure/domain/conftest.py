"""Fixtures of the domain's tests."""

import pytest

from tests.pure.domain.mutated_core import Core, unchanged_core


@pytest.fixture(scope="session")
def core() -> Core:
    """Return the unchanged modules; ``test_mutations.py`` runs the same tests on modules with one change."""
    return unchanged_core()
