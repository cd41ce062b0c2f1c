"""A pretrained head's class names, and which of them each class of a competition means."""

from __future__ import annotations

import difflib
from pathlib import Path

from foldwise import UserError
from foldwise.command import note


def read(path: Path, outputs: int) -> list[str]:
    """One name a line, `outputs` of them; a first line more (TensorFlow's 'background') is dropped, and said so."""
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"model.labels={path}: can't be read as text: {error}") from None
    while names and not names[-1].strip():
        names.pop()
    if len(names) == outputs + 1:
        note(f"{path}: {len(names)} names for {outputs} outputs; its first line, '{names[0]}', is dropped")
        names = names[1:]
    if len(names) != outputs:
        raise UserError(f"model.labels={path}: {len(names)} names, but the pretrained head has {outputs} outputs")
    return names


def match(classes: list[str], names: list[str], label_map: dict[str, list[str]]) -> dict[str, list[int]]:
    """Outputs of the pretrained head that mean each class: by `label_map`, else by name, case and underscores aside.

    classes: the competition's; names: the head's, in its order. Two outputs of one name both count.
    """
    unknown = set(label_map) - set(classes)
    if unknown:
        raise UserError(f"model.label_map: '{sorted(unknown)[0]}' is no class of the competition: {', '.join(classes)}")
    places: dict[str, list[int]] = {}
    for k, name in enumerate(names):
        for one in {_plain(name), *map(_plain, name.split(","))}:  # ImageNet's lists have 'ant, emmet, pismire'
            places.setdefault(one, []).append(k)
    found: dict[str, list[int]] = {}
    for label in classes:
        wanted = label_map.get(label, [label])
        for name in wanted:
            if _plain(name) not in places:
                raise UserError(_no_such(label, name, names, label in label_map))
        found[label] = sorted({k for name in wanted for k in places[_plain(name)]})
    return found


def _no_such(label: str, name: str, names: list[str], mapped: bool) -> str:
    close = difflib.get_close_matches(_plain(name), [_plain(other) for other in names], n=5, cutoff=0.4)
    hint = f"nearest: {', '.join(dict.fromkeys(close))}" if close else "none is near"
    where = f"model.label_map: {label}" if mapped else "model.labels"
    return f"{where}: no pretrained class is called '{name}' ({hint}); set model.label_map={{{label}: [NAME]}}"


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
