"""The board: what its home page weighs, how soon it can be used, how its filters, feeds and memory grow."""
