"""The three kinds of agents: how each is followed, spoken to, and what its end means."""
