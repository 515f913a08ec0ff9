"""Routes of the web page of a task."""
