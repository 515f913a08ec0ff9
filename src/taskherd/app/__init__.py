"""The composition roots: each builds a process out of its parts, starts it, and stops it in order."""
