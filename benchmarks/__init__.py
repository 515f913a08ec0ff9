"""Benchmarks: what a worker does in a second beside what its users could write, on this machine, with one command."""
