"""Benchmarks of taskherd on this machine, compared with programs that its users could write themselves."""
