"""What people and their tools speak to over HTTP: reads what the worker keeps, and turns writes into commands."""
