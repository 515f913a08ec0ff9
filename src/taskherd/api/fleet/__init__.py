"""The state of the fleet: pools, runners, workers, queues, what waits, and rates."""
