"""What every numbered script shares: its arguments' look, its lines at a terminal, errors as one with status 2."""

from __future__ import annotations

import argparse
import atexit
import errno
import os
import re
import select
import shlex
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TextIO

from foldwise import UserError
from foldwise.core.files import FULL, is_intact
from foldwise.core.schema import nearest

TERMINATED = 128 + signal.SIGTERM
OUT_OF_TIME = 75  # EX_TEMPFAIL: not done, not wrong
WIDTH = 80  # columns that a line may take
# what a line is, and how a terminal shows it: SGR numbers of ECMA-48
COLOURS = (
    (r"^(?:\S+ \d+ \| )?(?:warning|note):", "33"),
    (r"^error:", "31"),
    (r"^next: .*(?:\n  .*)*", "36"),
    (r"(?<=  )best$", "32"),
)


class Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line, with the nearest flag for a misspelt one."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            flag = unknown[1].split("=")[0]
            message = f"unknown argument {flag}{nearest(flag, self._option_string_actions)}"
        self.exit(2, f"{self.prog}: {message} (--help shows every flag with examples)\n")


def parser(doc: str | None, *, competition: bool = True) -> Parser:
    """A parser whose help is the script's docstring; with `--competition` unless told otherwise."""
    parsing = Parser(description=narrow(doc or ""), formatter_class=_Narrow, allow_abbrev=False)
    if competition:
        parsing.add_argument(
            "--competition",
            metavar="C",
            default=_usual_competition(),
            help="src/competitions/C.yaml, or a path to such a file (default: $FOLDWISE_COMPETITION, else demo)",
        )
    return parsing


class _Narrow(argparse.RawDescriptionHelpFormatter):
    """Help of at most WIDTH columns, whatever the terminal has."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(WIDTH, shutil.get_terminal_size().columns) - 2)


def narrow(text: str, width: int = WIDTH) -> str:
    """Lines of at most `width` columns: words go on below their column, a command's remark below it."""
    return "\n".join(part for line in text.splitlines() for part in _narrowed(line, width) or [""])


def _narrowed(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    indent = len(line) - len(line.lstrip())
    command, remark, says = line.partition("  # ")
    if remark:
        return [*_narrowed(command.rstrip(), width), *_narrowed(f"{' ' * (indent + 4)}# {says}", width)]
    columns = [hit.end() for hit in re.finditer(r"(?<=\S)  +", line) if hit.end() < width // 2]
    hang = columns[-1] if columns else indent + (2 if line.lstrip().startswith("python ") else 0)
    return textwrap.wrap(
        line, width, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )


def _usual_competition() -> str:
    return os.environ.get("FOLDWISE_COMPETITION", "demo")


def image_size(text: str) -> int:
    """An argparse type: the side of an image in pixels, 16 to 4096."""
    if not text.isdigit() or not 16 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"'{text}' is not a side in pixels, 16 to 4096")
    return int(text)


def count(text: str) -> int:
    """An argparse type: a whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number, 0 or more")
    return int(text)


def at_least_one(text: str) -> int:
    """An argparse type: a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    return int(text)


def add_report_flag(parser: argparse.ArgumentParser) -> None:
    """--report, of steps whose run's report takes longer than its model."""
    parser.add_argument("--report", action="store_true", help="write its report at once (default: step 10 does)")


def hours(text: str) -> float:
    """An argparse type: hours as a number, or '30m'."""
    found = re.fullmatch(r"((?:\d+\.?\d*|\.\d+)(?:e-?\d+)?) ?(h|m|min)?", text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is no time: hours (0.5), or minutes (30m)")
    return float(found[1]) / (60 if (found[2] or "h").startswith("m") else 1)


def add_hours(parsing: argparse.ArgumentParser) -> None:
    """--hours, which `stop_after` obeys."""
    told = "stop when they are over, with what is finished saved (status 75); 30m: minutes"
    parsing.add_argument("--hours", type=hours, metavar="H", help=told)


def stop_after(hours: float | None, left: str = "what was finished is saved: run the same command to continue") -> None:
    """End this script when so many hours are over, wherever it is, with status 75. left: what there is then."""

    def stop(*_: object) -> None:
        note(f"stopped: --hours are over; {left}")
        raise Stopped(OUT_OF_TIME)

    if hours is not None and hasattr(signal, "setitimer"):  # not Windows
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, 3600 * hours))


def name(text: str) -> str:
    """An argparse type: the name of a run or a submission, which becomes a file or folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no name: letters, digits, '.', '_' and '-'")
    return text


class Stopped(SystemExit):
    """A script is to end now, and wait for none of its threads."""


class _Termination:
    """SIGTERM ends a script at once with status 143, or, inside `finishing`, when what it does is saved."""

    asked = False
    patient = False

    def __call__(self, *_: object) -> None:
        self.asked = True
        if not self.patient:
            raise Stopped(TERMINATED)
        self.patient = False  # a second one does not wait


_termination = _Termination()


def terminated() -> bool:
    """Whether a SIGTERM has come."""
    return _termination.asked


@contextmanager
def finishing() -> Iterator[None]:
    """A block that asks `terminated` now and then, saves, and ends by itself."""
    _termination.patient = True
    try:
        yield
    finally:
        _termination.patient = False


def run(main: Callable[[], None]) -> NoReturn:
    """Call `main`; a UserError becomes one line on stderr and exit status 2, Ctrl-C status 130, SIGTERM 143."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _termination)
        sys.unraisablehook = _not_to_be_ignored
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        print(_dressed(f"error: {' '.join(str(error).split())}", sys.stderr), file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and any(map(_is_closed, (sys.stdout, sys.stderr))):
            os._exit(128 + signal.SIGPIPE)  # what was printed is not whole: `| head` must not turn it into a success
        if error.errno in FULL:
            print(
                f"error: {error.filename or 'the disk'}: no space left; what was finished is saved: make room (or set "
                "FOLDWISE_ROOT to another disk) and run the same command again to continue",
                file=sys.stderr,
            )
            sys.exit(2)
        if error.filename is None:
            raise
        closed = error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}
        remedy = "; allow it, or set FOLDWISE_ROOT to a folder that can be written" if closed else ""
        print(f"error: {error.filename}: {error.strerror}{remedy}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: what was finished is saved; run the same command again to continue", file=sys.stderr)
        _end(130)
    except Stopped as stop:
        _end(int(str(stop.code)))
    sys.exit(0)


def _not_to_be_ignored(ignored: Any) -> None:
    """Python ignores what is raised in a destructor: the end that was asked for comes a moment later."""
    end = ignored.exc_value

    def raise_again(*_: object) -> NoReturn:
        raise end

    if isinstance(end, (Stopped, KeyboardInterrupt)) and hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, raise_again)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(ignored)


def _end(status: int) -> NoReturn:
    """End as an interpreter does, but wait for no thread: what a pool computes may take minutes."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _is_closed(stream: TextIO) -> bool:
    """Whether the reader of a pipe that we write to is gone."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLERR)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def note(message: str) -> None:
    """A line of progress for the person at the terminal, above any progress bar."""
    from tqdm import tqdm

    tqdm.write(_dressed(message, sys.stderr), file=sys.stderr)


@cache
def note_once(message: str) -> None:
    """A note that several folds have to make."""
    note(message)


def note_if_edited(path: Path) -> None:
    """Say, once, that a file is not as it was written, where people may have edited it."""
    if not is_intact(path):
        note_once(f"warning: {path}: not as its step wrote it: edited or damaged; it counts as it is now")


def say(message: str) -> None:
    """Lines of a result."""
    print(_dressed(message, sys.stdout))


def next_step(competition: str, *arguments: object) -> None:
    """The last line of a step: the command that follows, as it is typed here. arguments: the script's, its name first.

    competition: as --competition named it.
    """
    script = Path(sys.argv[0]).with_name(str(arguments[0]))
    named = [] if competition == _usual_competition() else ["--competition", competition]
    note(f"next: python {' '.join(map(str, [script, *named, *arguments[1:]]))}")


def command() -> str:
    """What was typed."""
    return near(shlex.join(["python", *sys.argv]))


def near(text: str) -> str:
    """Paths below the current folder without what leads to it."""
    return re.sub(rf"(?<![^\s'\"(]){re.escape(str(Path.cwd()))}/", "", text)


def _dressed(text: str, stream: TextIO) -> str:
    """With near paths; at a terminal, no wider than it or WIDTH, and in colours unless NO_COLOR is set."""
    text = near(text)
    if not stream.isatty():
        return text
    text = narrow(text, min(WIDTH, shutil.get_terminal_size().columns))
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    for pattern, colour in COLOURS:
        text = re.sub(pattern, rf"\033[{colour}m\g<0>\033[0m", text, flags=re.MULTILINE)
    return text


def counted(count: int, word: str, plural: str = "") -> str:
    """'1 file', '1,200 files'."""
    return f"{count:,} {word if count == 1 else plural or word + 's'}"


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3.2 h'; a dash for NaN."""
    if seconds != seconds:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
