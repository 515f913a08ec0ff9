"""The measurements: one module per group of cases, listed in ``benchmarks/main.py``."""
