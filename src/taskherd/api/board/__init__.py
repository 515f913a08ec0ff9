"""The web page of a task."""
