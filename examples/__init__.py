"""Examples that run in a checkout; the wheel does not contain them."""
