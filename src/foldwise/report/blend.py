"""What a blend is worth, on a self-contained HTML page and at the terminal; its numbers come from blend/assess.py."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from foldwise.blend import Blend
from foldwise.blend.assess import Meta, examine, test_table
from foldwise.blend.methods import ALL
from foldwise.blend.run_set import RunSet
from foldwise.core.cli import counted, say
from foldwise.core.files import write_text
from foldwise.data import submission
from foldwise.data.competition import Competition
from foldwise.report import blend_figures, figures, page
from foldwise.report.page import Page

# --- the page -----------------------------------------------------------------------------------------------


def write_blend(
    competition: Competition,
    name: str,
    runs: RunSet,
    blend: Blend,
    seed: int = 0,
    automatic: Blend | None = None,
    left_out: Sequence[Meta] = (),
) -> tuple[Path, Meta]:
    """submissions/<competition>/<name>.csv, .json and .html, and the line in log.csv; the CSV, and what the JSON says.

    automatic: what weights by hand are compared with. left_out: runs that were not taken (blend/dominated.py).
    """
    meta = {**examine(competition, runs, blend, seed, automatic), "left_out": list(left_out)}
    path = submission.write_submission(competition, test_table(runs, blend), name, meta)
    submission.log_submission(competition, name, meta)
    write_text(path.with_suffix(".html"), draw_page(competition, name, runs, blend, meta).html())
    return path, meta


def draw_page(competition: Competition, name: str, runs: RunSet, blend: Blend, meta: Meta) -> Page:
    """The report as a page that needs no other file."""
    sheet = Page(f"Blend {name} of {competition.name}")
    kind = f"{meta['says']} ({_named(meta)}), {counted(meta['rows'], 'row')}, {counted(len(runs.names), 'run')}"
    sheet.lead = page.text(meta["verdict"]) + page.text(kind[:1].upper() + kind[1:], soft=True)
    if meta["note"]:
        sheet.lead += page.text(f"{meta['note'][:1].upper()}{meta['note'][1:]}.", soft=True)
    if meta["automatic"]:
        sheet.lead += page.text(f"The automatic blend: {_automatic(meta)}.")
    if meta["cuts"]:
        sheet.lead += page.text(f"Cuts: {_cuts(meta)}.")
    sheet.warnings = list(meta["warnings"])
    _tiles(sheet, meta)
    sheet.add("What to do", _to_do(competition, name, meta))
    sheet.add("Runs", _runs_table(meta))
    sheet.add("Methods tried", _methods_table(meta))
    for title, caption, figure in blend_figures.draw(competition, runs, blend, meta):
        sheet.add(title, page.text(caption, soft=True) + sheet.figure(figure, title))
    sheet.footer = "Made by 06_blend.py; every number stands in the JSON beside this page."
    return sheet


def _tiles(sheet: Page, meta: Meta) -> None:
    low, high = map(_number, meta["interval_95"])
    sheet.tile(_number(meta["nested_score"]), f"nested {meta['metric']}, 95 % interval {low} to {high}")
    sheet.tile(_number(meta["best_single_score"]), f"best single run: {_picked(meta)}")
    sheet.tile(_number(meta["plain_mean_score"]), f"plain mean of {counted(len(meta['runs']), 'run')}")
    sheet.tile(_range(meta["expected"]), f"expected on {counted(meta['expected']['public_rows'], 'public row')}")
    sheet.tile(_number(meta["in_sample_score"]), "in-sample: not to be believed")
    sheet.tile(f"{meta['effective_number_of_runs']:.1f}", f"effective runs of {len(meta['runs'])}, by their errors")


def _to_do(competition: Competition, name: str, meta: Meta) -> str:
    """Which file to hand in, which run to drop, what to note afterwards."""
    file = f"{name}.csv"
    lines = [f'Hand in <a href="{quote(file)}">{escape(f"submissions/{competition.name}/{file}")}</a>.']
    adds = sorted((row["adds"] or 0.0, row["run"]) for row in meta["leave_one_out"])
    if adds and adds[0][0] < 0 and len(adds) > 2 and meta["method"] != "best":
        kept = " ".join(row["run"] for row in meta["runs"] if row["run"] != adds[0][1])
        lines.append(
            f"Try it without <b>{escape(adds[0][1])}</b>, the run that costs most ({adds[0][0]:+.4f}; chosen by this "
            f"score, the gain is a little flattered): <code>06_blend.py --runs {escape(kept)}</code>"
        )
    lines += [escape(_left_out(row)) + "." for row in meta.get("left_out", [])]
    lines.append(f"With its score on the leaderboard: <code>06_blend.py --name {escape(name)} --lb SCORE</code>")
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


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
            row["weight"],
            *(page.fixed(row[key], 4) for key in ("raw", "fold_ranked", "fold_mean", "fold_std")),
            page.fixed(adds.get(row["run"]), 4, sign=True),
            page.fixed(drift[row["run"]], 2),
            sum(meta["coverage"].get(row["run"], {}).values()),
        ]
        for row in meta["runs"]
    ]
    more = (
        f"adds: what the nested score of {meta['leave_one_out_by']} loses without the run. drift: AUC that tells its "
        "test predictions from its out-of-fold ones, 0.5 cannot tell. Ranked in folds far above OOF: its folds are on "
        "different scales."
    )
    return page.table(head, rows) + page.text(more, soft=True)


def _methods_table(meta: Meta) -> str:
    if not meta["methods"]:
        return ""
    sign = -1 if meta["greater_is_better"] else 1
    ranked = sorted(meta["methods"], key=lambda row: sign * (row["nested_score"] or 0))
    rows = [
        [
            _named(row),
            ALL[row["method"]].says,
            *(page.fixed(row[key], 4) for key in ("nested_score", "behind_best", "standard_error")),
            "yes" if row["within"] else "",
        ]
        for row in ranked
    ]
    head = ["method", "what it is", "nested", "behind best", "standard error", "within half"]
    more = (
        "Chosen (marked): the simplest within half a paired standard error of the best, never one below the best "
        "single run; signed weights or trees only where they are two ahead of all others. The headline is not that "
        "row's score but the score of this choosing, done anew without each fold, and so free of the flattery of a "
        "best of many."
    )
    chosen = [_named(row) == _named(meta) for row in ranked]
    return page.table(head, rows, hot=chosen.__getitem__) + page.text(more, soft=True)


def _named(row: Meta) -> str:
    """'fold_rank', 'weights (logit)'."""
    return row["method"] if row["method"] == row["space"] else f"{row['method']} ({row['space']})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _automatic(meta: Meta) -> str:
    auto, gain = meta["automatic"], meta["gains"]["over_automatic"]
    ends = f"{gain['low']:+.4f} to {gain['high']:+.4f}"
    return (
        f"{_named(auto)}, nested {_number(auto['nested_score'])}; weights by hand are "
        f"{gain['gain']:+.4f} from it (95 % interval {ends}), and were perhaps set with these rows in sight"
    )


def _cuts(meta: Meta) -> str:
    named = list(meta["cuts"].items())
    shown = ", ".join(f"{name} {value:.3g}" for name, value in named[:12])
    rest = f", and {len(named) - 12} more in the JSON" if len(named) > 12 else ""
    return f"{shown}{rest}; tuned inside the folds, and so are those of the single runs it is compared with"


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
        f"{_named(meta)}: nested {_number(meta['nested_score'])} "
        f"[{_number(low)}, {_number(high)}], in-sample {_number(meta['in_sample_score'])}"
    )
    if meta["cuts"]:
        say(f"cuts: {_cuts(meta)}")
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
