"""Several models' predictions to one, judged by nested cross-validation.

fit_weights(preds, target, metric, method, seed=0) -> Blend      preds (models, rows) or (models, rows, classes)
"""

from foldwise.blend.fit import Blend, fit_weights, make_folds

__all__ = ["Blend", "fit_weights", "make_folds"]
