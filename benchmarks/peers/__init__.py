"""What the worker is compared with: programs as the documentation of their libraries would have them written."""
