"""Replacements for parts of libraries, each limited to the versions it was verified with.

Each patch states its library and version range, what it replaces, why, and the gain, as measured by
``python -m benchmarks patches``. Outside the range, the library's own code runs and a warning names the loss.
``tests/pure/test_library_drift.py`` fails when the library's code differs from the code that the patch was written for.
"""
