"""Make the embedded demo competition, or print its final score table.

reads    nothing; with --score: input/demo/, oof/demo/*/{oof,test}.csv, submissions/demo/*.csv
writes   input/demo/: train/*.dcm test/*.dcm train.csv test.csv sample_submission.csv solution.csv demo.json

    python src/00_demo.py                        # 1400 images, half a minute
    python src/00_demo.py --images 300 --seed 7  # another one, smaller; replaces the first
    python src/00_demo.py --score                # after 01 to 06: OOF and test AUC beside the best possible
    python src/00_demo.py --score --csv scores.csv
    python src/00_demo.py --series               # studies of slices, input/demo-series: 320 of them; --series --score
"""

from __future__ import annotations

from pathlib import Path

from foldwise import demo
from foldwise.core import cli


def main() -> None:
    parser = cli.parser(__doc__, competition=False)
    parser.add_argument("--images", type=int, help="train and test together (default 1400; --series: 320 studies)")
    parser.add_argument("--series", action="store_true", help="studies whose label only neighbouring slices show")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another competition (default 0)")
    parser.add_argument("--score", action="store_true", help="print the final table instead")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="with --score: write the table there too")
    options = parser.parse_args()
    if options.csv and not options.score:
        parser.error("--csv goes with --score")
    name, size = (demo.SERIES, 48) if options.series else ("demo", 96)
    if options.score:
        demo.print_scores(csv=options.csv, name=name)
        cli.next_step(name, "10_report.py")
        return
    if options.series:
        demo.make_series_demo(320 if options.images is None else options.images, options.seed)
    else:
        demo.make_demo(1400 if options.images is None else options.images, options.seed)
    cli.next_step(name, "01_preprocess.py", "--sizes", size)


if __name__ == "__main__":
    cli.run(main)
