"""A run killed over and over, told on the command line; started by test_survival.py as a process of its own.

torch is imported once and each attempt is a fork, so that twenty kills take seconds, not minutes. Prints a line of
JSON a trial: the moment, how often the run was killed, and the digest of what it wrote.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from foldwise.core import parallel
from foldwise.data import oof
from foldwise.data.competition import load_competition
from foldwise.data.recipe import load_recipe
from foldwise.model import checkpoint, predict
from foldwise.train.run import in_turn
from foldwise.train.state import State
from foldwise.train.step import Stepper
from foldwise.train.trainer import Trainer


def always(*_: object) -> bool:
    return True


PLACES: dict[str, tuple[object, str, Callable[..., bool], int]] = {  # what dies when called: owner, name, if, among
    "start": (State, "resume", always, 1),
    "inside an epoch": (Stepper, "backward", always, 8),
    "while saving": (checkpoint.torch, "save", always, 3),
    "between the renames": (Path, "replace", lambda path, _: path.name.endswith(".ckpt.part"), 3),
    "at validation": (predict, "_in_pieces", always, 3),
    "at test": (Trainer, "_predict", lambda _, split, *__: split == "test", 1),
    "while writing": (oof, "write_table", always, 3),
}


def arm(moment: str, draw: random.Random) -> None:
    """Let this process die at the moment named, at a random one of its first occurrences."""
    owner, name, condition, among = PLACES[moment]
    function, left = getattr(owner, name), [draw.randrange(among)]

    def dying(*args: object, **kwargs: object) -> object:
        if condition(*args):
            left[0] -= 1
            if left[0] < 0:
                if moment == "while saving":  # half of it is on the disk
                    function(*args, **kwargs)
                    os.truncate(str(args[1]), Path(str(args[1])).stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, dying)


def attempt(train: Callable[[], None], moment: str | None, draw: random.Random, seconds: float | None) -> bool:
    """Run `train` in a fork, to be killed at the moment, or after so many seconds; whether it was."""
    child = os.fork()
    if child == 0:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 2)
        try:
            if moment:
                arm(moment, draw)
            train()
        except BaseException as error:
            os.write(1, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + (float("inf") if seconds is None else seconds)
    while (ended := os.waitpid(child, 0 if seconds is None else os.WNOHANG)) == (0, 0):
        if time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    _, status = ended
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise SystemExit("the run failed")
    return False


def digest(folder: Path) -> str:
    """Of everything the run wrote but the clock."""
    total = hashlib.sha256()
    for path in (
        sorted(folder.glob("fold*.csv"))
        + sorted(folder.glob("*.safetensors"))
        + [folder / "oof.csv", folder / "test.csv"]
    ):
        data = path.read_bytes()
        if path.name.endswith("_log.csv"):
            kept = [",".join(row.split(",")[:6]) for row in data.decode().splitlines()]
            data = "\n".join(kept).encode()
        total.update(path.name.encode() + data)
    assert not list(folder.glob("*.ckpt*")) and not list(folder.glob("*.part")), sorted(folder.iterdir())
    return total.hexdigest()


def main() -> None:
    about = load_competition(sys.argv[1])
    recipe = load_recipe(
        sys.argv[2],
        [
            "train.save_minutes=0",
            "train.averaging=ema",
            "train.threads=1",
            "train.batch_size=8",
            "train.precision=plain",
        ],
    )
    draw = random.Random(int(sys.argv[3]))
    moments, trials = list(PLACES), int(sys.argv[4])
    parallel.tune_allocator()
    folder = about.runs() / "killed"

    def train() -> None:
        in_turn(about, {"killed": recipe}, [0, 1, 2])

    gc.freeze()  # the collector of a fork leaves the shared memory alone
    attempt(train, None, draw, None)  # the first is slower than the others
    shutil.rmtree(folder)
    began = time.monotonic()
    attempt(train, None, draw, None)
    whole = time.monotonic() - began
    print(json.dumps({"moment": "undisturbed", "digest": digest(folder), "kills": 0}), flush=True)
    for trial in range(trials):
        shutil.rmtree(folder)
        moment = moments[trial] if trial < len(moments) else None
        kills = 0
        for _ in range(1 if moment else draw.randint(1, 2)):
            began = time.monotonic()
            killed = attempt(train, moment, draw, None if moment else draw.uniform(0.02, whole))
            kills += killed
            if not killed and not moment:  # the machine is faster now: the end of the run came before
                whole = min(whole, time.monotonic() - began)
        attempt(train, None, draw, None)
        print(json.dumps({"moment": moment or "any", "digest": digest(folder), "kills": kills}), flush=True)


if __name__ == "__main__":
    main()
