"""Logs, metrics, traces, and the operations port with health checks."""
