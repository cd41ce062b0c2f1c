"""A saved blend on test rows that nobody has seen: which models, in which order, within which time."""
