"""How a step that made a run ends: its scores, and its report, which takes longer than some models, now or later."""

from __future__ import annotations

from foldwise.core.cli import say
from foldwise.data.competition import Competition
from foldwise.data.runs import RunInfo


def say_scores(info: RunInfo) -> None:
    """A run's score by fold and over all rows, or what is missing."""
    scores = ", ".join(f"{k}: {'-' if v is None else f'{v:.4f}'}" for k, v in info.fold_scores.items())
    say(f"{info.run}: {info.metric} by fold  {scores}")
    if not info.is_whole:
        missing = sorted(set(info.folds_wanted) - set(info.folds_done))
        say(f"{info.run}: folds {', '.join(map(str, missing))} are missing; oof.csv follows the last one")
        return
    spread = "" if info.fold_std is None else f", standard deviation over folds {info.fold_std:.4f}"
    score = "undefined" if info.score is None else f"{info.score:.4f}"
    say(f"{info.run}: {info.metric} out-of-fold {score}{spread}")


def end_run(competition: Competition, info: RunInfo, now: bool) -> None:
    """The scores; the report and the labels in doubt if `now`."""
    if now:
        from foldwise.report.run import report_run  # matplotlib

        return report_run(competition, info)
    say_scores(info)
