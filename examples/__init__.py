"""Examples that run on a checkout; none of them is part of the wheel."""
