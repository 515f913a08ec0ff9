"""What is measured: one module per group of cases, listed in ``benchmarks/main.py``."""
