"""A self-contained HTML page: sections, tables and pictures; every value that comes from data is escaped."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure

from foldwise.data.image import as_picture
from foldwise.report import figures

CSS = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d9dee6; --ground: #ffffff;
  --card: #f5f7fa; --accent: #0072b2; --warn: #b34700; --warn-ground: #fff4e8; --bar: #56b4e9; --blue: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b4; --line: #353d49; --ground: #14181e;
  --card: #1d232c; --accent: #56b4e9; --warn: #f0a050; --warn-ground: #2e2419; --bar: #2f6f94; --blue: #2f97d8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 28px; }
h1 { font-size: 27px; margin: 0; line-height: 1.25; } h2 { font-size: 20px; margin: 44px 0 6px; }
h3 { font-size: 15px; margin: 20px 0 6px; }
p { margin: 6px 0; max-width: 78ch; } p.soft { max-width: 100ch; }
.soft, caption, figcaption { color: var(--soft); font-size: 13px; }
nav { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 14px 0 18px; font-size: 14px; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(164px, 1fr)); gap: 10px; }
.tile { background: var(--card); border-radius: 8px; padding: 10px 14px; }
.tile b { display: block; font-size: 23px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; } .tile.warn { background: var(--warn-ground); }
.tile.warn b { color: var(--warn); }
.warnings { list-style: none; padding: 0; margin: 16px 0 0; }
.warnings li { background: var(--warn-ground); border-left: 4px solid var(--warn); border-radius: 4px;
  margin: 6px 0; padding: 7px 12px; overflow-wrap: anywhere; }
.fine { border-left: 4px solid #009e73; padding: 7px 12px; background: var(--card); border-radius: 4px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 14px; margin: 8px 0; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; font-size: 13px; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td { overflow-wrap: break-word; min-width: 3.5em; } tr.hot td { background: var(--warn-ground); }
td .track { display: inline-block; width: 60px; margin-left: 8px; text-align: left; }
td .bar { display: inline-block; height: 9px; background: var(--bar); border-radius: 2px; }
svg { display: block; width: 100%; height: auto; margin: 8px 0; }
.side { display: flex; flex-wrap: wrap; gap: 12px; } .side > * { flex: 1 1 380px; min-width: 0; }
.class { display: flex; gap: 14px; align-items: center; margin: 6px 0; }
.class > div:first-child { width: 170px; flex: none; overflow-wrap: anywhere; }
.strip { display: flex; flex-wrap: wrap; gap: 5px; }
img { border-radius: 4px; background: #8883; display: block; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(258px, 1fr)); gap: 12px; margin: 8px 0; }
.pair { background: var(--card); border-radius: 8px; padding: 9px; font-size: 13px; overflow-wrap: anywhere; }
.pair.warn { background: var(--warn-ground); } .pair .two { display: flex; gap: 8px; }
.pair .two > div { width: 50%; } .pair img { width: 100%; height: auto; }
figure { margin: 0; } pre { background: var(--card); padding: 8px 12px; overflow-x: auto; font-size: 13px; }
details > summary { cursor: pointer; color: var(--accent); margin: 8px 0; }
footer { color: var(--soft); font-size: 13px; margin: 48px 0 32px; border-top: 1px solid var(--line);
  padding-top: 10px; }
@media (max-width: 700px) { .class { display: block; } main, header { padding: 0 14px; }
  .scroll > svg { min-width: min(var(--wide), 640px); } .tiles { gap: 6px; } }
@media print { .warnings li, .tile { break-inside: avoid; } }
"""


NOTHING = "No warnings."


@dataclass
class Page:
    """Collects a page in reading order; `html` renders it."""

    title: str
    lead: str = ""
    tiles: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    fine: str = NOTHING  # good news
    sections: list[tuple[str, str, str]] = field(default_factory=list)  # anchor, heading, body
    footer: str = ""
    _figures: int = 0

    def tile(self, value: object, label: str, warn: bool = False) -> None:
        """A headline fact."""
        kind = "tile warn" if warn else "tile"
        self.tiles.append(f'<div class="{kind}"><b>{escape(str(value))}</b><span>{escape(label)}</span></div>')

    def add(self, heading: str, body: str) -> None:
        """A section; an empty body leaves it out."""
        if body:
            self.sections.append((f"s{len(self.sections)}", heading, body))

    def figure(self, figure: Figure, alt: str) -> str:
        """A figure as inline SVG; `alt` says what it shows."""
        self._figures += 1
        return f'<div class="scroll">{figures.svg(figure, self._figures, escape(alt))}</div>'

    def html(self) -> str:
        """The whole page: no script, nothing from outside."""
        links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in self.sections)
        first = "".join(f"<li>{escape(line)}</li>" for line in self.warnings)
        notes = f'<ul class="warnings">{first}</ul>' if first else ""
        notes += f'<p class="fine">{escape(self.fine)}</p>' if self.fine and (not first or self.fine != NOTHING) else ""
        body = "".join(
            f'<section id="{anchor}"><h2>{escape(heading)}</h2>{text}</section>\n'
            for anchor, heading, text in self.sections
        )
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{CSS}</style></head>\n"
            f"<body><header><h1>{escape(self.title)}</h1>{self.lead}<nav>{links}</nav>"
            f'<div class="tiles">{"".join(self.tiles)}</div>{notes}</header>\n<main>{body}'
            f"<footer>{self.footer}</footer></main></body></html>\n"
        )


def text(words: str, soft: bool = False) -> str:
    """A paragraph."""
    return f"<p{' class=soft' if soft else ''}>{escape(words)}</p>"


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[Any]],
    hot: Callable[[int], bool] | None = None,
    bars: Sequence[int] = (),
) -> str:
    """A table; numbers go to the right, columns in `bars` (0..1) get a bar, rows where `hot(k)` are marked."""
    cells = [list(row) for row in rows]
    right = [bool(cells) and all(_is_number(row[k]) for row in cells) for k in range(len(headings))]
    align = [' class="n"' if number and k not in bars else "" for k, number in enumerate(right)]
    head = "".join(f"<th{a}>{escape(name)}</th>" for a, name in zip(align, headings, strict=True))
    lines = []
    for k, row in enumerate(cells):
        mark = ' class="hot"' if hot is not None and hot(k) else ""
        tds = (f"<td{align[j]}>{_cell(value)}{_bar(value) if j in bars else ''}</td>" for j, value in enumerate(row))
        lines.append(f"<tr{mark}>{''.join(tds)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


class Fixed(float):
    """A number in a table's cell, by `form`."""

    form = ".3f"


def fixed(value: float | None, decimals: int, sign: bool = False) -> Fixed:
    """A number for a table, with so many decimals; a dash where None."""
    number = Fixed(np.nan if value is None else value)
    number.form = f"{'+' if sign else ''}.{decimals}f"
    return number


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return "–"
    if isinstance(value, Fixed):
        return format(float(value), value.form)
    if isinstance(value, float | np.floating):
        return f"{float(value):.3f}" if abs(float(value)) < 1000 else f"{float(value):,.0f}"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return escape(str(value))


def _bar(value: Any) -> str:
    if not isinstance(value, float) or np.isnan(value):
        return ""
    return f'<span class="track"><span class="bar" style="width:{60 * min(max(value, 0), 1):.0f}px"></span></span>'


def picture(image: np.ndarray, alt: str, shown: int = 104, quality: int = 84) -> str:
    """uint8 (H, W, 3) RGB, or (H, W, C) by its first channels, as an <img> with its JPEG inside; shown `shown` pixels
    high, stored at up to twice that."""
    image, (height, width) = as_picture(image), image.shape[:2]
    scale = min(1.0, 2 * shown / height)
    if scale < 1:
        image = cv2.resize(image, (max(1, round(width * scale)), 2 * shown), interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    code = base64.b64encode(data.tobytes()).decode()
    wide = round(shown * width / height)
    label = escape(alt, quote=True)
    return f'<img src="data:image/jpeg;base64,{code}" width="{wide}" height="{shown}" alt="{label}" title="{label}">'


def folded(summary: str, body: str) -> str:
    """A body that opens on a click, without script."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"
