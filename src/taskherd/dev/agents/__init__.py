"""Example agents that need neither a model nor a network, for evaluation and the demo."""
