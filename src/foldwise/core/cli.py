"""What every numbered script shares: its arguments' look, and errors as one line with exit status 2."""

from __future__ import annotations

import argparse
import errno
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

from foldwise import UserError
from foldwise.core.schema import nearest

TERMINATED = 128 + signal.SIGTERM


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
    parsing = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    if competition:
        parsing.add_argument(
            "--competition",
            metavar="C",
            default=os.environ.get("FOLDWISE_COMPETITION", "demo"),
            help="src/competitions/C.yaml, or a path to such a file (default: $FOLDWISE_COMPETITION, else demo)",
        )
    return parsing


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


def hours(text: str) -> float:
    """An argparse type: hours as a number, or '30m'."""
    found = re.fullmatch(r"((?:\d+\.?\d*|\.\d+)(?:e-?\d+)?) ?(h|m|min)?", text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is no time: hours (0.5), or minutes (30m)")
    return float(found[1]) / (60 if (found[2] or "h").startswith("m") else 1)


def name(text: str) -> str:
    """An argparse type: the name of a run or a submission, which becomes a file or folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no name: letters, digits, '.', '_' and '-'")
    return text


class _Termination:
    """SIGTERM ends a script at once with status 143, or, inside `finishing`, when what it does is saved."""

    asked = False
    patient = False

    def __call__(self, *_: object) -> None:
        self.asked = True
        if not self.patient:
            sys.exit(TERMINATED)
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
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and any(map(_is_closed, (sys.stdout, sys.stderr))):
            os._exit(128 + signal.SIGPIPE)  # what was printed is not whole: `| head` must not turn it into a success
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            print(
                f"error: {error.filename or 'the disk'}: no space left; what was finished is saved: make room (or set "
                "FOLDWISE_ROOT to another disk) and run the same command again to continue",
                file=sys.stderr,
            )
            sys.exit(2)
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: what was finished is saved; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


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

    tqdm.write(message, file=sys.stderr)


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3.2 h'; a dash for NaN."""
    if seconds != seconds:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
