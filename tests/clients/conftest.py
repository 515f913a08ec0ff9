"""Fixtures: the API with a worker that the tests of ``tests/api`` use."""

from tests.api.conftest import api_harness, start_api

__all__ = ["api_harness", "start_api"]
