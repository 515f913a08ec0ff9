"""Who and what tasks refer to, as clients look it up: people, organizations, templates."""
