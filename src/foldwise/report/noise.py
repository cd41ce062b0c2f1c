"""oof/<competition>/noise.html and noise.csv: training rows whose label the runs contradict, to decide on by eye."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd

from foldwise.audit import label_noise
from foldwise.core.cli import counted, say
from foldwise.core.files import write_csv, write_text
from foldwise.data import cache, index
from foldwise.data.cache import Cache
from foldwise.data.competition import Competition
from foldwise.report import page
from foldwise.report.page import Page

SHOWN = 300  # candidates with a picture; all are in the CSV
SIDE = 150  # pixels

STYLE = """<style>
.bar { position: sticky; top: 0; z-index: 1; background: var(--ground); padding: 8px 0; display: flex; flex-wrap: wrap;
  gap: 8px 14px; align-items: center; border-bottom: 1px solid var(--line); }
.bar button { font: inherit; padding: 5px 12px; border: 1px solid var(--line); border-radius: 6px; cursor: pointer;
  background: var(--card); color: var(--ink); }
.candidates { display: grid; grid-template-columns: repeat(auto-fill, minmax(172px, 1fr)); gap: 10px; }
.candidates .pair img { width: 100%; height: auto; } .candidates label { display: block; cursor: pointer; }
.pair:has(input:checked) { outline: 2px solid var(--accent); }
</style>"""

SCRIPT = """<script>{
const boxes = [...document.querySelectorAll(".candidates input")], said = document.getElementById("chosen");
const cell = text => /[",\\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
const chosen = () => boxes.filter(box => box.checked).map(box => [box.dataset.id, box.value, box.dataset.suggested]);
const count = () => { said.textContent = `${chosen().length} chosen`; };
boxes.forEach(box => box.addEventListener("change", () => {
  if (box.checked) box.closest(".pair").querySelectorAll("input").forEach(one => { one.checked = one === box; });
  count();
}));
document.getElementById("save").addEventListener("click", () => {
  const lines = [["id", "decision", "suggested"], ...chosen()].map(row => row.map(cell).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\\n") + "\\n"], {type: "text/csv"}));
  link.download = "labels.csv";
  link.click();
});
document.getElementById("ids").addEventListener("click", () =>
  navigator.clipboard.writeText(chosen().map(row => row[0]).join("\\n")));
}</script>"""


def write_noise(competition: Competition) -> pd.DataFrame | None:
    """Both files, anew; the candidates, None where there can be none (label_noise.candidates)."""
    table = index.load_index(competition)
    frame = label_noise.candidates(competition, table)
    if frame is None:
        return None
    write_csv(competition.runs() / "noise.csv", frame, "%.6g")
    write_text(competition.runs() / "noise.html", draw_page(competition, table, frame).html())
    return frame


def announce(competition: Competition) -> None:
    """How many labels are in doubt, and where to look at them: said when a run is whole."""
    frame = write_noise(competition)
    if frame is not None and len(frame):
        words = "label that the runs contradict", "labels that the runs contradict"
        say(f"{counted(len(frame), *words)}: {competition.runs() / 'noise.html'}")


def draw_page(competition: Competition, table: pd.DataFrame, frame: pd.DataFrame) -> Page:
    """The page of those candidates."""
    sheet = Page(f"Labels in doubt: {competition.name}", fine="")
    runs = sorted({name for names in frame["runs"] for name in names.split()})
    sheet.lead = STYLE + page.text(
        "Training rows whose out-of-fold predictions contradict their label with confidence (Northcutt et al. 2021), "
        f"in at least half of the runs ({', '.join(runs) or 'none'}): wrong, or hard. The most contradicted first."
    )
    train = int((table["split"] == "train").sum())
    sheet.tile(f"{len(frame):,}", f"candidates of {counted(train, 'training row')}")
    sheet.tile(f"{(frame['agree'] == 1).sum():,}", "that all runs contradict")
    step = f"python src/01_preprocess.py --competition {competition.name} --labels labels.csv --new-folds"
    sheet.add(
        "What to do",
        page.text(
            "Look at each and tick: drop takes the row out of training and scoring, relabel gives it the suggested "
            "label. Then download labels.csv, and let step 1 take it in (folds are made anew where rows are dropped; "
            "runs of before are refused beside new ones):"
        )
        + f"<pre>{escape(step)}</pre>",
    )
    sheet.add("Candidates", _candidates(competition, frame) if len(frame) else page.text("None."))
    sheet.footer = "Every row was predicted by models that had not seen it; all candidates are in noise.csv."
    return sheet


def _candidates(competition: Competition, frame: pd.DataFrame) -> str:
    images, shown = cache.to_show(competition), frame.head(SHOWN)
    cards = "".join(card(competition, images, row, tick=True) for row in shown.itertuples())
    bar = (
        '<div class="bar"><span id="chosen">0 chosen</span><button id="save">Download labels.csv</button>'
        '<button id="ids">Copy the ids</button></div>'
    )
    more = page.text(f"The first {SHOWN} of {len(frame):,}; all are in noise.csv.", soft=True)
    return bar + (more if len(frame) > SHOWN else "") + f'<div class="candidates">{cards}</div>{SCRIPT}'


def card(competition: Competition, images: Cache | None, row: object, tick: bool = False) -> str:
    """One candidate (a row of label_noise.candidates) with its picture, and boxes to tick."""
    row_id, given, suggested = (str(getattr(row, name)) for name in ("id", "given", "suggested"))
    where = np.array([-1]) if images is None else images.rows("train", [row_id])
    picture = page.picture(images.read(where)[0], row_id, SIDE) if images is not None and where[0] >= 0 else ""
    words = f"given {competition.shown(given)}, suggested {competition.shown(suggested)}"
    facts = f"score {row.score:.2f}, {row.agree:.0%} of the runs"  # type: ignore[attr-defined]
    boxes = ""
    if tick:
        data = f'data-id="{escape(row_id, quote=True)}" data-suggested="{escape(suggested, quote=True)}"'
        boxes = "".join(
            f'<label><input type="checkbox" value="{decision}" {data}> {words}</label>'
            for decision, words in (("drop", "drop"), ("relabel", f"relabel {escape(competition.shown(suggested))}"))
        )
    return (
        f'<figure class="pair">{picture}{escape(row_id)}<figcaption>{escape(words)}<br>{escape(facts)}</figcaption>'
        f"{boxes}</figure>"
    )
