"""Step 7: what a run's models look at, on one page: maps over the worst errors, the surest answers, the confusions.

reads    oof/<competition>/<run>/ (run.json, fold<K>.csv, fold<K>.safetensors); input/derived/<competition>/
writes   oof/<competition>/<run>/explain/: index.html with every picture as a PNG, cases.csv, deletion.csv; the
         folder holds what the last command asked for

Each row is explained by the model that did not train on it. The page also checks that the maps matter: parts of the
image give way to a blurred copy, by the map's order, at random, and from the centre outwards.

examples
  python src/07_explain.py --run demo
  python src/07_explain.py --run demo --rows p0001_a p0002_b --method gradcam++
  python src/07_explain.py --run demo --sheet worst --count 24 --layer layer3 --maximise
"""

from __future__ import annotations

from foldwise.core import cli, parallel
from foldwise.data.competition import load_competition
from foldwise.data.runs import recipe_of
from foldwise.report.cases import SHEETS


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--run", required=True, metavar="RUN", help="a run of step 2")
    parser.add_argument("--rows", nargs="+", default=[], metavar="ID", help="explain these rows, instead of sheets")
    parser.add_argument(
        "--sheet", nargs="+", default=list(SHEETS), choices=SHEETS, help="which sheets (default: all three)"
    )
    parser.add_argument("--count", type=cli.count, default=8, metavar="N", help="cases a sheet (default: 8)")
    parser.add_argument(
        "--layer", metavar="L", help="timm's name of the layer to map, second.L in the second backbone (default: last)"
    )
    parser.add_argument("--method", choices=["gradcam", "gradcam++", "ig"], default="gradcam", help="ig: by pixel")
    parser.add_argument("--maximise", action="store_true", help="also make the inputs that each answer asks for")
    parser.add_argument(
        "--deletion", type=cli.count, default=24, metavar="N", help="images of the deletion check (default: 24)"
    )
    cli.add_hours(parser)
    args = parser.parse_args()

    cli.stop_after(args.hours, "the page is as it was; fewer cases (--count, --deletion) take less")
    competition = load_competition(args.competition)
    recipe = recipe_of(competition, args.run)
    parallel.tune_allocator()
    from foldwise.report.explain import write_explain_report  # torch

    page, verdict = write_explain_report(
        competition,
        recipe,
        args.run,
        rows=args.rows,
        sheets=args.sheet,
        count=args.count,
        layer=args.layer,
        method=args.method,
        maximise=args.maximise,
        deletion=args.deletion,
    )
    cli.say(f"look at {page}")
    cli.say(verdict)
    cli.next_step(args.competition, "10_report.py")


if __name__ == "__main__":
    cli.run(main)
