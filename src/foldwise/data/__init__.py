"""A competition as tables and pixels: what the host defines, index, folds, caches, prediction tables, submissions."""
