"""What is left out where the hours do not hold all: views, then folds, then runs, those first that are worth least.

A run is worth what the blend's nested OOF score loses without it (leave-one-out, in the submission's JSON); a run that
others rest on, and that is not in the blend itself, what the best of these is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from foldwise import UserError
from foldwise.core.cli import duration
from foldwise.inference.members import Member, Source
from foldwise.inference.pixels import Pace, plain, views

SLACK = 1.15  # a machine is slower than it was
FINISH = 10.0  # seconds for heads, columns, the blend and the file, or a quarter of what is left


@dataclass(frozen=True)
class Choice:
    """The runs of the blend that are used, the folds of each run, and the runs whose images are seen in one view."""

    members: Mapping[str, Member]
    worth: Mapping[str, float]
    keep: tuple[str, ...]
    kept: Mapping[str, tuple[int, ...]]
    plain: frozenset[str] = frozenset()

    @classmethod
    def everything(
        cls,
        members: Mapping[str, Member],
        runs: list[str],
        worth: Mapping[str, float],
        only: Sequence[int] | None = None,
    ) -> Choice:
        """Nothing left out, save for the folds that are not among `only`; UserError where a run has none of these."""
        kept = {
            name: tuple(fold for fold in member.folds if only is None or fold in only)
            for name, member in members.items()
        }
        for name in [name for name, own in kept.items() if not own]:
            raise UserError(f"--folds: run {name} has folds {members[name].folds}")
        return cls(members, worth, tuple(runs), kept)

    @cached_property
    def used(self) -> list[str]:
        """The runs that are kept and all that these rest on, in order."""
        wanted = set(self.keep)
        for name in reversed(list(self.members)):
            if name in wanted:
                wanted |= set(self.members[name].rests_on)
        return [name for name in self.members if name in wanted]

    def folds_of(self, name: str) -> list[int]:
        """A run's folds that can be predicted: those that the runs it rests on have, too."""
        others = [set(self.folds_of(other)) for other in self.members[name].rests_on]
        return [fold for fold in self.kept[name] if all(fold in other for other in others)]

    @cached_property
    def sources(self) -> dict[str, Source]:
        """By key, what is asked of the pixels."""
        wanted: dict[str, Source] = {}
        for name in self.used:
            for source in self.members[name].sources(self.folds_of(name)):
                wanted.setdefault(source.key, plain(source) if name in self.plain else source)
        return wanted

    def needs_pixels(self, name: str) -> bool:
        """Whether a run, or one that it rests on, looks at images."""
        member = self.members[name]
        return bool(member.sources(member.folds)) or any(map(self.needs_pixels, member.rests_on))

    def seconds(self, pace: Pace, overlapped: bool) -> float:
        """An image, by the measured pace: decoding and networks one after the other, or the longer of both."""
        sets = {source.images for source in self.sources.values()}
        decode = sum(Pace.of(pace.decode[key]) for key in sets if key in pace.decode)
        look = sum(Pace.of(pace.view[key]) * views(s) for key, s in self.sources.items() if key in pace.view)
        return max(decode, look) if overlapped else decode + look

    def lesser(self) -> Iterator[Choice]:
        """What could be left out next, each on top of the one before: views, then folds, then runs."""
        choice = self
        by_worth = sorted(self.used, key=lambda name: self.worth.get(name, float("inf")))
        for name in by_worth:
            own = choice.members[name].sources(choice.folds_of(name))
            if name not in choice.plain and any(views(source) > 1 for source in own):
                choice = replace(choice, plain=choice.plain | {name})
                yield choice
        for share in (2, 100):
            for name in by_worth:
                folds = choice.kept[name]
                fewer = folds[: max(1, -(-len(folds) // share))]
                if len(fewer) < len(folds) and self.needs_pixels(name):
                    choice = replace(choice, kept={**choice.kept, name: fewer})
                    yield choice
        looking = [name for name in by_worth if name in choice.keep and self.needs_pixels(name)]
        for name in looking[:-1]:  # the last one goes as far as it comes
            choice = replace(choice, keep=tuple(kept for kept in choice.keep if kept != name))
            yield choice

    def left_out(self, whole: Choice) -> list[str]:
        """What it lacks of the whole, a line a run."""
        lines = []
        for name in whole.used:
            adds = self.worth.get(name)
            fewer = len(self.folds_of(name)) if name in self.used else 0
            if name not in self.used:
                lines.append(f"run {name}" + ("" if adds is None else f" (adds {adds:+.4f} to the nested score)"))
            elif fewer < len(whole.folds_of(name)) or name in self.plain:
                folds = f"{fewer} of {len(whole.folds_of(name))} folds" if fewer < len(whole.folds_of(name)) else ""
                view = "one view an image" if name in self.plain else ""
                lines.append(f"{name} by {' and '.join(filter(None, (folds, view)))}")
        return lines

    def state(self) -> dict[str, Any]:
        """What of it may change, as plain data."""
        return {"keep": list(self.keep), "kept": dict(self.kept), "plain": sorted(self.plain)}

    def as_in(self, state: Mapping[str, Any]) -> Choice:
        """The choice among the same runs that `state` described."""
        kept = {name: tuple(own) for name, own in state["kept"].items()}
        return replace(self, keep=tuple(state["keep"]), kept=kept, plain=frozenset(state["plain"]))

    def says(self, images: int) -> str:
        """'3 runs x 5 folds x 21,000 images'."""
        looking = [name for name in self.used if self.needs_pixels(name)]
        folds = {len(self.folds_of(name)) for name in looking} or {0}
        many = f"{min(folds)} to {max(folds)}" if len(folds) > 1 else str(max(folds))
        return f"{len(looking)} runs x {many} folds x {images:,} images"


@dataclass(frozen=True)
class Budget:
    """deadline: seconds since 1970, None without one. overlapped: whether decoding goes on beside the networks."""

    deadline: float | None
    overlapped: bool

    def fit(self, choice: Choice, pace: Pace, images: int, now: float) -> tuple[Choice, str]:
        """The choice, or the first lesser one that `images` more can be predicted by in time; and what to say of it."""
        if self.deadline is None or not pace.decode:
            return choice, ""
        left = self.deadline - now
        left -= max(min(FINISH, left / 4), 0.02 * left)
        need = SLACK * images * choice.seconds(pace, self.overlapped)
        says = f"{choice.says(images)}: {duration(need)}, {duration(max(0.0, left))} are left"
        if need <= left:
            return choice, says
        for lesser in choice.lesser():
            choice = lesser
            if SLACK * images * choice.seconds(pace, self.overlapped) <= left:
                break
        return choice, says
