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
from foldwise.data.competition import load_competition
from foldwise.report import noise, results, results_page, run


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--runs", nargs="+", metavar="RUN", help="folders in oof/<competition>/ (default: all)")
    args = parser.parse_args()

    competition = load_competition(args.competition)
    runs = results.gather(competition, args.runs)
    for one in runs:
        run.illustrate(competition, one)
    noise.write_noise(competition)
    path = results_page.write_results(competition, runs)
    results_page.print_table(competition, runs)
    cli.say(f"wrote {path} and results.csv")
    cli.next_step(args.competition, "09_app.py")


if __name__ == "__main__":
    cli.run(main)
