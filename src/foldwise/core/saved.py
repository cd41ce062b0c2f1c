"""Fitted things as plain data: dataclasses of arrays, numbers and text to JSON or one .npz, and back; no code in it.

A dataclass becomes {"is": its name, its fields...}; one with a `state` method that instead, and `from_state` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foldwise import UserError
from foldwise.core.files import replacing


def to_plain(value: Any, arrays: list[np.ndarray] | None = None) -> Any:
    """What JSON holds of a value. Arrays join `arrays`, and a number stands for each; else they stand in the text."""
    if isinstance(value, np.ndarray):
        if arrays is None:
            numbers = " ".join(map(repr, value.reshape(-1).tolist()))  # on one line of an indented JSON
            return {"array": numbers, "dtype": str(value.dtype), "shape": list(value.shape)}
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if hasattr(value, "state"):
        return {"is": type(value).__name__, "state": to_plain(value.state(), arrays)}
    if is_dataclass(value):
        named = {field.name: to_plain(getattr(value, field.name), arrays) for field in fields(value)}
        return {"is": type(value).__name__, **named}
    if isinstance(value, dict):  # in pairs: a key may be None
        return {"pairs": [[to_plain(key, arrays), to_plain(each, arrays)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        return [to_plain(each, arrays) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def from_plain(plain: Any, kinds: Iterable[type], arrays: dict[str, np.ndarray] | None = None) -> Any:
    """The value that `to_plain` described; `kinds`: the dataclasses that may stand in it."""
    by_name = {kind.__name__: kind for kind in kinds}

    def read(part: Any) -> Any:
        if isinstance(part, list):
            return [read(each) for each in part]
        if not isinstance(part, dict):
            return part
        if "array" in part:
            if arrays is not None:
                return arrays[f"array{part['array']}"]
            return np.array([float(text) for text in part["array"].split()], part["dtype"]).reshape(part["shape"])
        if "pairs" in part:
            return {read(key): read(each) for key, each in part["pairs"]}
        kind: Any = by_name[part["is"]]
        named = {name: read(each) for name, each in part.items() if name != "is"}
        return kind.from_state(named["state"]) if "state" in named else kind(**named)

    return read(plain)


def write_saved(path: Path, value: Any) -> None:
    """An .npz with the arrays of a value, and what they are, written whole."""
    arrays: list[np.ndarray] = []
    text = json.dumps(to_plain(value, arrays)).encode()
    named = {f"array{k}": array for k, array in enumerate(arrays)}
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, what=np.frombuffer(text, np.uint8), **named)  # type: ignore[arg-type]


def read_saved(path: Path, kinds: Iterable[type], remedy: str) -> Any:
    """What `write_saved` wrote; UserError with the remedy where it is not there, or damaged."""
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        return from_plain(json.loads(arrays.pop("what").tobytes()), kinds, arrays)
    except FileNotFoundError:
        raise UserError(f"{path}: not there; {remedy}") from None
    except Exception as error:  # zip, zlib, JSON and NumPy each have their own
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); {remedy}") from None
