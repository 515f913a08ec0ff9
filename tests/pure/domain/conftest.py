"""Fixtures of the core's tests."""

import pytest

from tests.pure.domain.mutated_core import Core, whole


@pytest.fixture(scope="session")
def core() -> Core:
    """The core as it is; ``test_guards.py`` runs the same tests with one guard missing."""
    return whole()
