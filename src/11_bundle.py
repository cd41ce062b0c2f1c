"""Step 11: a blend as the notebook of a code competition: everything in one folder, checked, and rehearsed.

reads    submissions/<competition>/<name>.json, the runs it rests on, input/derived/<competition>/; --rehearse: the
         competition's raw training files, too
writes   <out>/dataset/ (code, models, the blend; to upload), <out>/kernel/ (the notebook), <out>/submit.py, bundle.json

examples
  python src/11_bundle.py --submission blend --out bundle --owner you      # the bundle, and what it weighs
  python src/11_bundle.py --submission blend --out bundle --owner you --fp16 --wheels wheels
  python src/11_bundle.py --check bundle                                   # what the host would refuse; damaged files
  python src/11_bundle.py --rehearse bundle --hidden-rows 21000            # offline, as the host runs it; a verdict
  python src/11_bundle.py --push bundle                                    # upload, by the kaggle client and its token

--check and --rehearse end with status 1 where a rule is broken, and name it.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path

from foldwise.core import cli, parallel
from foldwise.data.competition import load_competition


def main() -> None:
    parser = cli.parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--submission", type=cli.name, metavar="S", help="bundle this blend of step 6")
    what.add_argument("--check", type=Path, metavar="DIR", help="look a bundle over")
    what.add_argument("--rehearse", type=Path, metavar="DIR", help="run a bundle as the host would")
    what.add_argument("--push", type=Path, metavar="DIR", help="upload a bundle")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the bundle goes")
    parser.add_argument(
        "--owner", default=os.environ.get("KAGGLE_USERNAME", "OWNER"), metavar="YOU", help="your name at the host"
    )
    parser.add_argument("--title", metavar="TITLE", help="of the dataset, 6 to 50 characters (default: by the names)")
    parser.add_argument("--hours", type=float, default=9.0, metavar="H", help="that the host gives (default: 9)")
    parser.add_argument("--no-gpu", action="store_true", help="the competition allows no GPU")
    parser.add_argument("--fp16", action="store_true", help="weights in half precision; its cost in OOF score is told")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="wheels to put in (default: name those needed)")
    parser.add_argument(
        "--hidden-rows", type=int, default=21_000, metavar="N", help="rows of the hidden test set (default: 21000)"
    )
    parser.add_argument("--rows", type=int, default=200, metavar="N", help="rows of the rehearsal's (default: 200)")
    args = parser.parse_args()
    parallel.tune_allocator()
    if args.submission:
        if args.out is None:
            parser.error("--submission goes with --out DIR")
        bundle(args)
    elif args.push:
        from foldwise.inference.bundle import push

        push(args.push)
    elif args.check:
        from foldwise.inference.bundle import check

        wrong = check(args.check)
        cli.say("\n".join(f"FAIL  {line}" for line in wrong) or f"{args.check}: nothing that the host would refuse")
        if not wrong:
            cli.next_step(args.competition, "11_bundle.py", "--rehearse", args.check)
        sys.exit(bool(wrong))
    else:
        from foldwise.inference.rehearsal import rehearse

        chosen = "--competition" in " ".join(sys.argv)
        verdict = rehearse(args.rehearse, args.hidden_rows, args.rows, args.competition if chosen else None)
        cli.say(verdict.table())
        for line in verdict.broken:
            cli.say(f"broken: {line}")
        if not verdict.broken:
            cli.next_step(args.competition, "11_bundle.py", "--push", args.rehearse)
        sys.exit(bool(verdict.broken))


def bundle(args: Namespace) -> None:
    from foldwise.inference.bundle import Wish, check, fetch, make_bundle, sizes

    competition = load_competition(args.competition)
    title = args.title or f"foldwise {competition.name} {args.submission}"[:50]
    wish = Wish(args.owner, title, args.hours, not args.no_gpu, args.fp16, args.wheels)
    about = make_bundle(competition, args.submission, args.out, wish)
    for what, much, limit in sizes(args.out, about):
        cli.say(f"{what:<14} {much:>16}  {limit and f'limit {limit}'}")
    if about["missing_wheels"]:
        cli.say(
            f"the image lacks {', '.join(about['missing_wheels'])}: {fetch(about['missing_wheels'])}, then --wheels"
        )
    for line in check(args.out):
        cli.say(f"to mend: {line}")
    cli.next_step(args.competition, "11_bundle.py", "--rehearse", args.out)


if __name__ == "__main__":
    cli.run(main)
