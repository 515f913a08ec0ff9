"""The three kinds of agents: how output is followed, input delivered and the exit interpreted."""
