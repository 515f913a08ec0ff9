"""The task routes: what Coder's Tasks API has, and what is ours beyond it."""
