"""What can be seen from outside: logs, metrics and the operations port, each declared once."""
