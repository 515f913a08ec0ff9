"""Agents of our own, which need neither a model nor a network: for the demo, for trying out, and as examples."""
