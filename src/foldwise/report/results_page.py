"""oof/<competition>/results.html: every run side by side, to sort and to filter, without network."""

from __future__ import annotations

from html import escape
from pathlib import Path
from urllib.parse import quote

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from foldwise import UserError, __version__
from foldwise.blend import trust
from foldwise.blend.spaces import ranks
from foldwise.core.cli import counted, duration, say
from foldwise.core.files import write_csv, write_text
from foldwise.data.competition import Competition
from foldwise.report import blend_figures, curves, figures, page, results
from foldwise.report.page import Page
from foldwise.report.results import Result

MOST = 40  # runs in a figure
BOARDS = ("public", "private")  # columns of the leaderboard's scores

STYLE = """<style>
main, header { max-width: 1348px; }
table.runs th button { all: unset; cursor: pointer; font-weight: 600; white-space: nowrap; }
table.runs th button::after { content: " \\2195"; opacity: .45; }
table.runs th[aria-sort=ascending] button::after { content: " \\2191"; opacity: 1; }
table.runs th[aria-sort=descending] button::after { content: " \\2193"; opacity: 1; }
table.runs th button:focus-visible, input:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table.runs td { overflow-wrap: break-word; } table.runs td.n { padding-right: 18px; }
table.runs td.run, table.runs td.model { max-width: 15em; } td.says { min-width: 14em; font-size: 13px; }
.filter { display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: center; margin: 12px 0 4px; }
.filter input { font: inherit; padding: 5px 9px; width: 26em; max-width: 100%; border: 1px solid var(--line);
  border-radius: 6px; background: var(--card); color: var(--ink); }
details.one { border-top: 1px solid var(--line); padding: 2px 0; } details.one > summary { font-weight: 600; }
.report figure { flex: 1 1 420px; } .report img { max-width: 100%; max-height: 460px; }
code { font-size: 13px; overflow-wrap: anywhere; }
</style>"""

SCRIPT = """<script>{
const table = document.querySelector("table.runs"), body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
const key = (row, k) => row.cells[k].dataset.v ?? row.cells[k].textContent.trim().toLowerCase();
const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, {numeric: true}) : a - b;
heads.forEach((head, k) => head.querySelector("button").addEventListener("click", () => {
  const up = head.ariaSort ? head.ariaSort !== "ascending" : head.dataset.first !== "down";
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const empty = row => key(row, k) === "";
  body.append(...[...body.rows].sort((a, b) =>
    empty(a) - empty(b) || (up ? 1 : -1) * compare(key(a, k), key(b, k))));
}));
const box = document.getElementById("filter"), said = document.getElementById("shown");
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => word[0] === "-" && word[1] ? !text.includes(word.slice(1)) : text.includes(word));
    shown += !row.hidden;
  }
  said.textContent = `${shown} of ${body.rows.length} runs`;
});
const open = () => { const one = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (one && one.tagName === "DETAILS") one.open = true; };
addEventListener("hashchange", open); open();
}</script>"""


def write_results(competition: Competition, runs: list[Result]) -> Path:
    """results.html and results.csv in oof/<competition>/; returns the page's path."""
    folder = competition.runs()
    every = [*results.with_leaderboard(competition, runs), *results.blends(competition)]
    write_csv(folder / "results.csv", results.table(every), "%.6g")
    path = folder / "results.html"
    write_text(path, draw_page(competition, runs).html())
    return path


def draw_page(competition: Competition, runs: list[Result]) -> Page:
    """The page of those runs (results.gather)."""
    scored, broken = [one for one in runs if not one.reason], [one for one in runs if one.reason]
    up = competition.scorer().greater_is_better
    sheet = Page(f"{competition.name}: every run")
    sheet.lead = STYLE + page.text(
        f"{competition.task}, scored by {competition.metric} ({'higher' if up else 'lower'} is better) on rows that "
        "the model of their fold never saw. Made from the runs' own tables, logs and run.json."
    )
    if (competition.runs() / "noise.html").exists():
        sheet.lead += '<p>See also: <a href="noise.html">labels in doubt</a></p>'
    _tiles(sheet, competition, scored, broken)
    if scored:
        shown = scored[:MOST]
        alt = f"{competition.metric} of each run with its 95 % interval, and of its folds"
        sheet.add("Scores", _legend(len(scored)) + sheet.figure(forest(competition.metric, shown), alt))
        blends = results.blends(competition)
        sheet.add("Runs", _runs(competition.metric, [*blends, *results.with_leaderboard(competition, scored)], up))
        sheet.add("How alike the runs are", _alike(sheet, scored))
        sheet.add("Each run", "".join(_one(sheet, competition, one) for one in scored) + SCRIPT)
    sheet.add("Left out", _left_out(broken))
    sheet.footer = escape(f"Made by 10_report.py, foldwise {__version__}. The same numbers are in results.csv.")
    return sheet


def _tiles(sheet: Page, competition: Competition, scored: list[Result], broken: list[Result]) -> None:
    complete = [one for one in scored if one.complete]
    sheet.tile(len(complete), "complete runs" if len(complete) != 1 else "complete run")
    if len(scored) > len(complete):
        sheet.tile(len(scored) - len(complete), "with some folds only")
    if broken:
        sheet.tile(len(broken), "left out", warn=True)
    if complete and not np.isnan(complete[0].score):
        best = complete[0]
        sheet.tile(number(best.score), f"{competition.metric}, the best: {best.run}")
        near = [one for one in complete[1:] if not one.gain_high < 0]
        sheet.tile(len(near), "others that can't be told from it")
    hours = sum(one.seconds for one in scored if not np.isnan(one.seconds))
    sheet.tile(duration(hours), "spent on all of them")
    sheet.warnings = [f"{one.run}: left out: {one.reason}" for one in broken]
    sheet.warnings += [f"{one.run}: {one.note}" for one in scored if one.note]


def number(value: float, decimals: int = 4) -> str:
    """So many decimals, a dash for NaN, thousands without decimals."""
    if np.isnan(value):
        return "–"
    return f"{value:.{decimals}f}" if abs(value) < 1000 else f"{value:,.0f}"


# --- the figure ---------------------------------------------------------------------------------------------


def forest(metric: str, runs: list[Result]) -> Figure:
    """A line per run: score with its 95 % interval, and the folds' scores as small rings below it."""
    with matplotlib.rc_context(figures.STYLE):
        drawn = Figure(figsize=(figures.WIDTH, 1.0 + 0.36 * len(runs)), layout="constrained")
        axes = drawn.subplots()
        for y, one in zip(range(len(runs))[::-1], runs, strict=True):
            colour = figures.BLUE if one.complete else figures.ORANGE
            axes.plot([one.low, one.high], [y + 0.12] * 2, color=colour, linewidth=2.5, solid_capstyle="round")
            axes.plot(one.score, y + 0.12, "o" if one.complete else "s", color=colour, markersize=7)
            values = list(one.by_fold.values())
            axes.plot(values, [y - 0.22] * len(values), "o", mfc="none", mec="#888888", markersize=4.5)
        names = [one.run if len(one.run) <= 40 else one.run[:39] + "…" for one in runs]
        axes.set_yticks(range(len(runs))[::-1], names)
        axes.set_ylim(-0.6, len(runs) - 0.4)
        axes.set_xlabel(f"out-of-fold {metric}")
        axes.grid(axis="x", color="#888888", alpha=0.25, linewidth=0.8)
    return drawn


def _legend(count: int) -> str:
    more = f" The {MOST} best of {count}." if count > MOST else ""
    return page.text(
        "Dot and line: score over all rows with its 95 % interval (bootstrap, whole groups drawn). Square, orange: "
        f"only some of the folds, so not the same rows. Rings: each fold by itself.{more}",
        soft=True,
    )


# --- the table ----------------------------------------------------------------------------------------------


def _runs(metric: str, runs: list[Result], up: bool) -> str:
    differ = results.varying(runs)
    better = "down" if up else ""
    boards = [(name, better) for name in BOARDS if any(not np.isnan(getattr(one, name)) for one in runs)]
    heads = [
        ("run", ""),
        ("model", ""),
        ("px", ""),
        (metric, better),
        ("95 % interval", better),
        ("against the best", "down"),
        ("mean of folds ± sd", better),
        ("folds", "down"),
        ("time", ""),
        *boards,
        ("what differs", ""),
    ]
    top = "".join(
        f'<th scope="col"{" data-first=" + first if first else ""}><button type="button">{escape(name)}</button></th>'
        for name, first in heads
    )
    rows = "".join(f"<tr>{''.join(_cells(one, differ, [name for name, _ in boards]))}</tr>" for one in runs)
    return (
        '<div class="filter"><label for="filter">Filter</label><input id="filter" type="search" '
        'placeholder="words that a run must hold; -word: must not"><span class="soft" id="shown" role="status">'
        f"{counted(len(runs), 'run')}</span></div>"
        f'<div class="scroll"><table class="runs"><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'
        + page.text(
            "Click a heading to sort, again to turn round. Against the best: gain over the best complete run on the "
            "rows of both, with its paired 95 % interval; where that holds 0 the two can't be told apart. A blend's "
            "score is its nested one, and its gain that over its best run. The best of "
            "many is flattered by having been chosen. Time: what training took on the machine where it ran.",
            soft=True,
        )
    )


def _cells(one: Result, differ: set[str], boards: list[str]) -> list[str]:
    page_of = quote(f"../../submissions/{one.folder.name}/{one.run}.html") if one.blend else f"#{quote(_anchor(one))}"
    link = f'<a href="{page_of}">{escape(one.run)}</a>{" (blend)" if one.blend else ""}'
    told = one.gain_low > 0 or one.gain_high < 0
    gain = f"{one.gain:+.3f} ({one.gain_low:+.3f} to {one.gain_high:+.3f})" if not np.isnan(one.gain) else ""
    folds = "" if one.blend else f"{one.folds_done} of {one.folds_wanted}"
    spread = (
        "" if one.blend else number(one.fold_mean, 3) + ("" if np.isnan(one.fold_std) else f" ± {one.fold_std:.3f}")
    )
    says = ", ".join(f"{key}={one.differs[key]}" for key in sorted(differ) if key in one.differs)
    return [
        f'<td class="run">{link}</td>',
        f'<td class="model">{escape(one.model)}</td>',
        _value(one.image_size, one.image_size),
        _value(number(one.score), one.score),
        _value("" if np.isnan(one.low) else f"{number(one.low, 3)} to {number(one.high, 3)}", one.low),
        _value(gain, one.gain, bold=told),
        _value(spread, one.fold_mean),
        _value(folds, one.folds_done),
        _value("" if one.blend else duration(one.seconds), one.seconds),
        *(_value("" if np.isnan(value) else f"{value:g}", value) for value in (getattr(one, name) for name in boards)),
        f'<td class="says">{escape(says)}</td>',
    ]


def _alike(sheet: Page, runs: list[Result]) -> str:
    """Rank correlation of the complete runs' predictions: what is pale adds to a blend."""
    sets = [(figures.short(one.run), one.run_set) for one in runs if one.complete and one.run_set is not None][:MOST]
    values = [
        (name, ranks(one.preds.reshape(1, -1))[0]) for name, one in sets if len(one.preds[0]) == sets[0][1].rows_all
    ]
    if len(values) < 2:
        return ""
    matrix = trust.correlation(np.stack([pred for _, pred in values])).tolist()
    figure = blend_figures.correlations([name for name, _ in values], matrix, "rank correlation")
    words = "Rank correlation of out-of-fold predictions. Runs that agree on all rows count as one opinion in a blend."
    return "" if figure is None else page.text(words, soft=True) + sheet.figure(figure, "correlation of the runs")


def _value(shown: object, by: float | str, bold: bool = False) -> str:
    """A cell with what it is sorted by, '' for nothing."""
    text = f"<b>{escape(str(shown))}</b>" if bold else escape(str(shown))
    key = "" if isinstance(by, float) and np.isnan(by) else f"{by:.9g}" if isinstance(by, float) else str(by)
    return f'<td class="n" data-v="{escape(key, quote=True)}">{text}</td>'


def _anchor(one: Result) -> str:
    return f"run-{one.run}"


# --- each run -----------------------------------------------------------------------------------------------


def _one(sheet: Page, competition: Competition, one: Result) -> str:
    scores = page.table(
        ["fold", *map(str, one.by_fold)], [[competition.metric, *(number(value) for value in one.by_fold.values())]]
    )
    differs = ", ".join(f"{key}={value}" for key, value in one.differs.items())
    settings = f"<p>Settings other than the defaults: <code>{escape(differs)}</code></p>" if differs else ""
    body = _links(one) + scores + settings + _curves(sheet, competition, one) + _pictures(one)
    title, anchor = escape(f"{one.run}: {number(one.score)}"), escape(_anchor(one), quote=True)
    return f'<details class="one" id="{anchor}"><summary>{title}</summary>{body}</details>'


def _links(one: Result) -> str:
    """Relative links to what the run's folder holds, so that the folder can be moved as a whole."""
    pages = sorted([*one.folder.glob("*.html"), *one.folder.glob("*/*.html")])
    files = [*pages, *(one.folder / name for name in ("run.json", "oof.csv", "test.csv"))]
    links = (path.relative_to(one.folder.parent).as_posix() for path in files if path.exists())
    return (
        "<p>" + " · ".join(f'<a href="{quote(link)}">{escape(link.partition("/")[2])}</a>' for link in links) + "</p>"
    )


def _curves(sheet: Page, competition: Competition, one: Result) -> str:
    try:
        logs = {fold: log for fold, log in curves.read(one.folder).items() if len(log)}
    except UserError as error:
        return page.text(str(error))
    if not logs:
        return ""
    drawn = sheet.figure(curves.figure(logs, competition.metric), f"learning curves of {one.run}")
    slow = "".join(f"fold {k}: epoch {int(curves.chosen(log)['epoch'])} of {len(log)}. " for k, log in logs.items())
    return f"<h3>Learning curves</h3>{page.text('Epoch that predicts: ' + slow, soft=True)}{drawn}"


def _pictures(one: Result) -> str:
    """The figures that the run's own report holds, by relative links; none where it has not been made."""
    body = ""
    for name in ("confusion", "calibration", "residuals"):
        path = one.folder / "report" / f"{name}.png"
        if path.exists():
            link = quote(path.relative_to(one.folder.parent).as_posix())
            body += (
                f'<figure><h3>{name.title()}</h3><img src="{link}" alt="{name} of {escape(one.run)}" loading="lazy">'
            )
            body += "</figure>"
    return f'<div class="side report">{body}</div>' if body else ""


def _left_out(broken: list[Result]) -> str:
    if not broken:
        return ""
    rows = [[one.run, one.model, one.reason] for one in broken]
    return page.text("Runs that have no score here, and why.") + page.table(["run", "model", "reason"], rows)


def print_table(competition: Competition, runs: list[Result]) -> None:
    """The same for the person at the terminal: a line per run."""
    width = max(len(figures.short(one.run)) for one in runs)
    say(f"{'run':<{width}}  {competition.metric[:9]:>9}  95 % interval   folds' mean ± sd    folds   time")
    for one in runs:
        name = f"{figures.short(one.run):<{width}}"
        if one.reason:
            say(f"{name}  left out: {one.reason}")
            continue
        spread = f"{number(one.fold_mean, 3)} ± {number(one.fold_std, 3)}"
        ends = f"{number(one.low, 3)} to {number(one.high, 3)}"
        done = f"{one.folds_done} of {one.folds_wanted}"
        say(f"{name}  {number(one.score):>9}  {ends:<14}  {spread:<18}  {done:<6}  {duration(one.seconds):>5}")
