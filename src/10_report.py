"""Step 10: every run of a competition on one page, to sort and to filter: scores, spread, cost, curves.

reads    oof/<competition>/<run>/ (prediction tables, logs, run.json), input/derived/<competition>/ (index, folds)
writes   oof/<competition>/results.html, results.csv; <run>/curves.png and <run>/report/ where they are missing or old

A run that can't be used, for a damaged table or a fold that is missing, is listed with the reason.

examples
  python src/10_report.py                               # all runs of the demo; the same as make report
  python src/10_report.py --competition skin1500
  python src/10_report.py --runs baseline mobilenetv2   # only these
"""

from __future__ import annotations

from foldwise.core import cli
from foldwise.data import competition
from foldwise.report import results, results_page


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--runs", nargs="+", metavar="RUN", help="folders in oof/<competition>/ (default: all)")
    args = parser.parse_args()

    about = competition.load(args.competition)
    found = results.gather(about, args.runs)
    for one in found:
        results.illustrate(about, one)
    path = results_page.write(about, found)
    results_page.print_table(about, found)
    print(f"wrote {path} and results.csv")


if __name__ == "__main__":
    cli.run(main)
