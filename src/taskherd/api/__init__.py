"""The HTTP API: serves reads from the database and turns writes into commands."""
