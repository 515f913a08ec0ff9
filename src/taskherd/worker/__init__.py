"""The corridor that every input takes, and the loops above it; the loops never import each other."""
