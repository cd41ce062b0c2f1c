"""What a blend is worth, on a self-contained HTML page and at the terminal; its numbers come from blend/assess.py."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from foldwise.blend import Blend
from foldwise.blend.assess import Meta
from foldwise.blend.methods import ALL
from foldwise.blend.run_set import RunSet
from foldwise.core.cli import say
from foldwise.core.files import write_text
from foldwise.data import submission
from foldwise.data.competition import Competition
from foldwise.report import blend_figures, figures

# --- the page -----------------------------------------------------------------------------------------------

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p.lead { font-size: 1.1rem; } .muted { color: #666; font-size: .9rem; }
table { border-collapse: collapse; font-size: .88rem; } th, td { padding: .25rem .7rem; text-align: right; }
th { border-bottom: 2px solid #444; font-weight: 600; } td { border-bottom: 1px solid #ddd; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; } tr.chosen td { font-weight: 700; background: #eef5fb; }
.wide { overflow-x: auto; } img { max-width: 100%; } ul.warn li { margin: .2rem 0; }
ul.warn { background: #fff6e5; border-left: 4px solid #e69f00; padding: .6rem 1rem .6rem 2rem; }
.numbers { display: flex; flex-wrap: wrap; gap: 2.2rem; margin: 1rem 0; } .numbers b { font-size: 1.5rem; }
.numbers b { display: block; }
"""


def write_blend_report(competition: Competition, name: str, runs: RunSet, blend: Blend, meta: Meta) -> Path:
    """submissions/<competition>/<name>.html, and the submission's line in submissions/log.csv."""
    submission.log_submission(competition, name, meta)
    path = competition.submissions() / f"{name}.html"
    write_text(path, page(competition, name, runs, blend, meta))
    return path


def page(competition: Competition, name: str, runs: RunSet, blend: Blend, meta: Meta) -> str:
    """The report as HTML that needs no other file."""
    low, high = (_number(value) for value in meta["interval_95"])
    numbers = [
        ("nested " + meta["metric"], _number(meta["nested_score"]), f"95 % interval {low} to {high}"),
        ("best single run", _number(meta["best_single_score"]), _picked(meta)),
        ("plain mean", _number(meta["plain_mean_score"]), f"of {len(runs.names)} runs"),
        ("expected on public rows", _range(meta["expected"]), f"of {meta['expected']['public_rows']:,}"),
        ("in-sample", _number(meta["in_sample_score"]), "not to be believed"),
        ("effective runs", f"{meta['effective_number_of_runs']:.1f}", f"of {len(runs.names)}, by their errors"),
    ]
    cells = "".join(
        f"<div><span class=muted>{_e(a)}</span><b>{b}</b><span class=muted>{_e(c)}</span></div>" for a, b, c in numbers
    )
    warned = "".join(f"<li>{_e(one)}</li>" for one in meta["warnings"])
    drawn = "".join(
        f"<h2>{_e(title)}</h2><p class=muted>{_e(caption)}</p>"
        f"<img alt='{_e(title)}' src='data:image/png;base64,{data}'>"
        for title, caption, data in blend_figures.draw(competition, runs, blend, meta)
    )
    note = f"<p>{_e(meta['note'][:1].upper() + meta['note'][1:])}.</p>" if meta["note"] else ""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_e(name)}: {_e(competition.name)}</title>"
        f"<meta name=viewport content='width=device-width'><style>{STYLE}</style>"
        f"<h1>{_e(name)}</h1><p class=muted>{_e(competition.name)}: {_e(meta['says'])} "
        f"(method {meta['method']}, space {meta['space']}), {meta['rows']} rows, {len(runs.names)} runs</p>"
        f"<p class=lead>{_e(meta['verdict'])}</p>{note}"
        + (f"<p>The automatic blend: {_e(_automatic(meta))}.</p>" if meta["automatic"] else "")
        + f"<div class=numbers>{cells}</div>"
        + (f"<ul class=warn>{warned}</ul>" if warned else "")
        + _runs_table(meta)
        + _methods_table(meta)
        + drawn
        + "</html>\n"
    )


def _runs_table(meta: Meta) -> str:
    adds = {row["run"]: row["adds"] for row in meta["leave_one_out"]}
    drift = meta["oof_against_test"]["auc_by_run"]
    head = [
        "run",
        "model",
        "size",
        "weight",
        "OOF",
        "ranked in folds",
        "mean of folds",
        "± sd",
        "adds",
        "drift",
        "rows",
    ]
    rows = [
        [
            row["run"],
            row["model"],
            row["image_size"],
            f"{row['weight']:.3f}",
            _number(row["raw"]),
            _number(row["fold_ranked"]),
            _number(row["fold_mean"]),
            _number(row["fold_std"]),
            "" if adds.get(row["run"]) is None else f"{adds[row['run']]:+.4f}",
            f"{drift[row['run']]:.2f}",
            str(sum(meta["coverage"].get(row["run"], {}).values())),
        ]
        for row in meta["runs"]
    ]
    more = (
        f"adds: what the nested score of {meta['leave_one_out_by']} loses without the run. drift: AUC that tells its "
        "test predictions from its out-of-fold ones, 0.5 cannot tell. Ranked in folds far above OOF: its folds are on "
        "different scales."
    )
    return f"<h2>Runs</h2><div class=wide>{_table(head, rows)}</div><p class=muted>{more}</p>"


def _methods_table(meta: Meta) -> str:
    if not meta["methods"]:
        return ""
    sign = -1 if meta["greater_is_better"] else 1
    ranked = sorted(meta["methods"], key=lambda row: sign * (row["nested_score"] or 0))
    rows = [
        [
            f"{row['method']} ({row['space']})",
            ALL[row["method"]].says,
            _number(row["nested_score"]),
            f"{row['behind_best']:.4f}",
            f"{row['standard_error']:.4f}",
            "yes" if row["within"] else "",
        ]
        for row in ranked
    ]
    chosen = [row["method"] == meta["method"] and row["space"] == meta["space"] for row in ranked]
    head = ["method", "what it is", "nested", "behind best", "standard error", "within half"]
    more = (
        "Chosen: the simplest within half a paired standard error of the best, never one below the best single run; "
        "signed weights or trees only where they are two ahead of all others. The headline is not that row's score "
        "but the score of this choosing, done anew without each fold, and so free of the flattery of a best of many."
    )
    return f"<h2>Methods tried</h2><div class=wide>{_table(head, rows, chosen)}</div><p class=muted>{more}</p>"


def _table(head: list[str], rows: list[list[str]], chosen: Sequence[bool] = ()) -> str:
    marks = list(chosen) or [False] * len(rows)
    top = "".join(f"<th>{_e(one)}</th>" for one in head)
    body = "".join(
        f"<tr{' class=chosen' if mark else ''}>" + "".join(f"<td>{_e(one)}</td>" for one in row) + "</tr>"
        for row, mark in zip(rows, marks, strict=True)
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _automatic(meta: Meta) -> str:
    auto, gain = meta["automatic"], meta["gains"]["over_automatic"]
    ends = f"{gain['low']:+.4f} to {gain['high']:+.4f}"
    return (
        f"{auto['method']} ({auto['space']}), nested {_number(auto['nested_score'])}; weights by hand are "
        f"{gain['gain']:+.4f} from it (95 % interval {ends}), and were perhaps set with these rows in sight"
    )


def _picked(meta: Meta) -> str:
    flatters = f", picked of {len(meta['runs'])}: flatters by {_number(meta['best_of_many'])}"
    return meta["best_single"] + (flatters if len(meta["runs"]) > 1 else "")


def _left_out(row: Meta) -> str:
    return (
        f"left out: {row['run']} ({_number(row['score'])}): clearly below {row['best']}, and the nested score is no "
        f"worse without it ({-row['adds']:+.4f}); --all takes it in"
    )


def _range(ends: Meta) -> str:
    return f"{_number(ends['low'])} to {_number(ends['high'])}"


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)


def print_summary(meta: Meta, path: Path) -> None:
    """The few lines that a person at the terminal wants."""
    low, high = meta["interval_95"]
    width = max(len(row["run"]) for row in meta["runs"])
    adds = {row["run"]: f"{row['adds']:+.4f}" for row in meta["leave_one_out"] if row["adds"] is not None}
    say(f"{'run':<{width}}  weight  {meta['metric']:>8}     adds")
    for row in meta["runs"]:
        say(f"{row['run']:<{width}}  {row['weight']:6.3f}  {_number(row['raw']):>8}  {adds.get(row['run'], ''):>7}")
    for row in meta.get("left_out", []):
        say(_left_out(row))
    say(
        f"{meta['method']} ({meta['space']}): nested {_number(meta['nested_score'])} "
        f"[{_number(low)}, {_number(high)}], in-sample {_number(meta['in_sample_score'])}"
    )
    expected = meta["expected"]
    if None not in expected.values() and len(meta["runs"]) > 1:
        say(
            f"expect {_range(expected)} on {expected['public_rows']:,} public rows; "
            f"a change below {expected['noise']:.4f} there means nothing"
        )
    say(meta["verdict"])
    if meta["automatic"]:
        say(f"The automatic blend: {_automatic(meta)}")
    for line in [meta["note"], *meta["warnings"]]:
        if line:
            say(f"note: {line}")
    say(f"wrote {path}, {path.with_suffix('.json').name} and {path.with_suffix('.html').name}")


def note_scores(competition: Competition, name: str, scores: Sequence[float]) -> None:
    """--lb: the scores go into submissions/log.csv; from three on, cv_against_lb.png shows what CV is worth."""
    lines = submission.log_leaderboard(competition, name, scores)
    say(f"{submission.log_path(competition)}: {name} scored {' / '.join(f'{score:g}' for score in scores)}")
    figure = blend_figures.leaderboard(lines)
    if figure is not None:
        path = competition.submissions() / "cv_against_lb.png"
        figures.save(figure, path, dpi=130, tight=True)
        say(f"wrote {path}")
    elif len(lines) < 3:
        say(f"{3 - len(lines)} more scored submissions until CV can be drawn against the leaderboard")
