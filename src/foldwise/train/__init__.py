"""Training: one fold, the folds of a run."""
