"""Mutation testing: small changes of behaviour, each run against the tests that execute the changed line."""
