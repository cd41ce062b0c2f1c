"""YAML checked against pydantic models: unknown keys are refused with the nearest name."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from foldwise import UserError

ALIASES = 20  # a few lines of aliases of aliases unfold to gigabytes ("billion laughs")


class Strict(BaseModel):
    """A model that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


M = TypeVar("M", bound=BaseModel)


class _AsWritten(yaml.SafeLoader):
    """Scalars stay the text that stands there: yes, 2, 007 and 2020-01-01 may be labels; only null is nothing."""


_AsWritten.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag.endswith((":null", ":merge"))]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path, as_written: bool = False) -> dict[str, Any]:
    """The mapping in a YAML file; UserError where it is missing, malformed or not a mapping.

    as_written: numbers, dates, yes and no stay text, for the fields they land in to read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if text.count("*") > ALIASES and sum(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text)) > ALIASES:
            raise UserError(f"{path}: more than {ALIASES} YAML aliases (*name): write the values out")
        data = (_AsWritten if as_written else yaml.SafeLoader)(text).get_single_data()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected `key: value` lines, found a {type(data).__name__}")
    return data


def find_yaml(folder: Path, name_or_path: str, flag: str) -> Path:
    """folder/NAME.yaml, or the path itself where it ends in .yaml or .yml; UserError names flag and nearest name."""
    if name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path)
    path = folder / f"{name_or_path}.yaml"
    if not path.exists():
        known = nearest(name_or_path, (file.stem for file in folder.glob("*.yaml")))
        raise UserError(f"{flag} {name_or_path}: no {path}{known}; or give the path of a .yaml file")
    return path


def validate(model: type[M], data: dict[str, Any], source: str) -> M:
    """`data` as a `model`; the first complaint becomes one UserError line that names `source` and the key."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(top level)"
        if first["type"] == "extra_forbidden":
            raise UserError(f"{source}: unknown key '{key}'{_near_keys(model, first['loc'])}") from None
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        message = first["msg"].removeprefix("Value error, ")
        value = "" if first["type"] == "missing" or not first["loc"] else f", found {str(first['input'])[:60]!r}"
        raise UserError(f"{source}: {key}: {message}{value}{more}") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean 'x'?' for the closest known name, or the list of names where nothing is close."""
    names = sorted(map(str, known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"; known: {listed}" if names else ""


def submodel(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside an annotation such as `Split | None`, if there is one."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted name, field) of every key a file of `model` may have; a section whose parts all have keys is not one."""
    for name, field in model.model_fields.items():
        key, inner = prefix + (field.alias or name), submodel(field.annotation)
        if inner is None or field.description:
            yield key, field
        if inner is not None:
            yield from keys(inner, f"{key}.")


def describe(model: type[BaseModel]) -> str:
    """Every key with its default, its meaning and allowed values below it. Made from the fields themselves."""
    rows = [(f"{key}={default(field)}", f"{field.description}{allowed(field)}") for key, field in keys(model)]
    return "\n".join(f"{shown}\n{textwrap.indent(textwrap.fill(says, 74), ' ' * 6)}" for shown, says in rows)


def default(field: FieldInfo) -> str:
    """A field's default as YAML; '(required)' where it has none."""
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True)
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=10**6).splitlines()[0]


def allowed(field: FieldInfo) -> str:
    """' [none, flip, d4]' or ' [> 0, <= 1]' where a field says what it takes: its type, limits or `examples`."""
    kinds = (field.annotation, *get_args(field.annotation))
    values = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    values += field.examples or []
    signs = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
    for limit in field.metadata:
        values += [f"{sign} {getattr(limit, name):g}" for name, sign in signs if hasattr(limit, name)]
    values += ["true", "false"] if bool in kinds else []
    return f" [{', '.join(map(str, values))}]" if values else ""


def _near_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """The keys that an unknown one may have meant: alike in its own section, or of its name in another."""
    *parents, leaf = [str(part) for part in loc if isinstance(part, str)]
    section, last = "".join(f"{part}." for part in parents), dict[str, list[str]]()
    names = dict.fromkeys(
        ".".join(key.split(".")[: n + 1]) for key, _ in keys(model) for n in range(key.count(".") + 1)
    )
    for name in names:
        last.setdefault(name.rpartition(".")[2], []).append(name)
    own = {name.removeprefix(section) for name in names if name.startswith(section) and "." not in name[len(section) :]}
    near = [section + name for name in difflib.get_close_matches(leaf, sorted(own), n=3, cutoff=0.65)]
    near += [name for one in difflib.get_close_matches(leaf, last, n=3, cutoff=0.85) for name in last[one]]
    if near:
        return "; did you mean '" + "' or '".join(dict.fromkeys(near)) + "'?"
    return f"; known{f' in {section[:-1]}' if section else ''}: {', '.join(sorted(own))}"
