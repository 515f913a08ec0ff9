"""What agents used and cost, added up over days."""
