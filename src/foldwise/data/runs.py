"""The life of a run: oof/<competition>/<run>/ opened, its folds gathered, run.json; read again."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.util import hash_pandas_object
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from foldwise import UserError, __version__
from foldwise.core import cli
from foldwise.core.files import digest, is_locked, locked, write_sealed
from foldwise.core.schema import nearest
from foldwise.data import decisions, folds, index, top
from foldwise.data.competition import Competition
from foldwise.data.oof import pred_columns, prediction_table, read_table, score, write_table
from foldwise.data.recipe import Recipe, differences, of_today, recipe_from, refuse_idle


class RunInfo(BaseModel):
    """run.json: what made a run, and its scores. What else a step wrote (chosen settings, drift...) is kept beside.

    config: the recipe, or another step's settings. folds: what each fold's training wrote down. image: the
    competition's `image` options that the pixels were made with. auxiliary: its targets that were learnt beside.
    fold_scores, score: None where undefined.
    """

    model_config = ConfigDict(extra="allow")
    run: str = ""
    competition: str = ""
    task: str = ""
    metric: str = ""
    config: dict[str, Any] = {}
    folds: dict[str, dict[str, Any]] = {}
    seconds: float | None = None
    weights_of: str | None = None
    command: str = ""
    folds_hash: str | None = None
    labels_hash: str | None = None
    targets_hash: str | None = None
    auxiliary: dict[str, Any] = {}
    image: dict[str, Any] | None = None
    folds_done: list[int] = []
    folds_wanted: list[int] = []
    fold_scores: dict[str, float | None] = {}
    score: float | None = None
    fold_std: float | None = None

    @field_validator("config")
    @classmethod
    def _of_old_names(cls, config: dict[str, Any]) -> dict[str, Any]:
        embed = {"embed": of_today(config["embed"])} if isinstance(config.get("embed"), dict) else {}
        return {**of_today(config), **embed}

    @property
    def is_whole(self) -> bool:
        """Whether every fold is done, and oof.csv written."""
        return bool(self.folds_done) and self.folds_done == self.folds_wanted

    @property
    def says_anything(self) -> bool:
        """Whether there was a run.json."""
        return bool(self.model_fields_set)


@dataclass(frozen=True)
class Run:
    """One run's predictions: `oof` (id, fold, target..., pred...), `test` (id, pred...), `info` (run.json)."""

    name: str
    folder: Path
    oof: pd.DataFrame
    test: pd.DataFrame
    info: RunInfo = field(default_factory=RunInfo)

    @cached_property
    def pred_columns(self) -> list[str]:
        """['pred'], or ['pred_<class>', ...] in the file's order."""
        return pred_columns(self.oof)


def list_runs(competition: Competition) -> list[str]:
    """Names of the folders in oof/<competition>/ that hold an oof.csv and a test.csv."""
    folder = competition.runs()
    folders = (path.parent for path in folder.glob("*/oof.csv")) if folder.is_dir() else ()
    return sorted(run.name for run in folders if (run / "test.csv").exists())


def load_run(competition: Competition, name: str, tests: bool = True) -> Run:
    """One run; UserError where it is not there, not finished, or its tables are damaged.

    tests: False for a competition without test rows, whose runs have no test.csv.
    """
    folder = competition.runs() / name
    missing = [file for file in ("oof.csv", "test.csv")[: 1 + tests] if not (folder / file).exists()]
    if missing:
        if folder.is_dir() and sorted(folder.glob("fold*.csv")):
            raise UserError(f"{folder}: no {missing[0]} yet, only some folds; finish it with 02_train.py --fold all")
        raise UserError(f"{folder}: no {missing[0]}{nearest(name, list_runs(competition))}")
    oof = read_table(folder / "oof.csv")
    test = read_table(folder / "test.csv") if tests else oof.iloc[:0][["id", *pred_columns(oof)]]
    absent = set(pred_columns(oof)) ^ set(pred_columns(test))
    if absent:
        raise UserError(f"{folder}: oof.csv and test.csv differ in column {sorted(absent)[0]}")
    return Run(name, folder, oof, test, read_run_info(folder))


def read_run_info(folder: Path) -> RunInfo:
    """run.json, or nothing but defaults where there is none; UserError where it is damaged."""
    path = folder / "run.json"
    cli.note_if_edited(path)
    try:
        return RunInfo.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return RunInfo()
    except ValidationError as error:
        first = error.errors()[0]
        why = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise UserError(
            f"{path}: damaged ({why}); delete it and run the step that made the run again, with the same settings: "
            "what is finished stays"
        ) from None


def recipe_of(competition: Competition, run: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe a trained run was made with, under `predict.*` overrides."""
    folder = competition.runs() / run
    info = read_run_info(folder)
    if not folder.is_dir():
        trained = sorted(path.parent.name for path in competition.runs().glob("*/fold*.safetensors"))
        raise UserError(f"{folder}: no such run{nearest(run, trained)}")
    if "image_size" not in info.config:
        raise UserError(f"{folder}: not a run of 02_train.py: run.json holds no recipe")
    changed = _other_pixels(info, competition)
    if changed:
        raise UserError(
            f"{folder}: trained on images made with other `image` options ({'; '.join(changed)}) than "
            f"{competition.file} has now; change them back, or train it anew"
        )
    other = [text for text in overrides if not text.startswith("predict.")]
    if other:
        raise UserError(f"override '{other[0]}': the weights are trained; only predict.* can change now")
    recipe = recipe_from(info.config, list(overrides), str(folder / "run.json"))
    if overrides:
        if recipe.predict.tta == "d4" and competition.orientation == "upright":
            raise UserError(
                f"predict.tta=d4 turns images, and {competition.file} has `orientation: upright`; take flip"
            )
        refuse_idle(recipe, f"run {run}", "predict.")
    return recipe


def check_folds(competition: Competition, run: str, fold_table: pd.DataFrame) -> None:
    """UserError where a run was trained on other folds than today's (it has seen rows that it would predict), or on
    other labels."""
    info = read_run_info(competition.runs() / run)
    if info.folds_hash != folds.digest(fold_table):
        raise UserError(
            f"{competition.runs() / run}: trained on other folds ({info.folds_hash}) than folds.csv "
            f"({folds.digest(fold_table)}): its models have seen rows that they would predict; train it anew"
        )
    if info.targets_hash not in {None, _targets(competition, fold_table)}:
        raise UserError(f"{competition.runs() / run}: trained on other labels than index.parquet holds; train it anew")


def write_run_info(folder: Path, info: RunInfo) -> None:
    """run.json, written whole."""
    write_sealed(folder / "run.json", info.model_dump(exclude_unset=True))


def open_run(
    competition: Competition, name: str, config: dict[str, Any], fold_table: pd.DataFrame, restart: Sequence[int] = ()
) -> Path:
    """The run's folder, made if need be. A run never mixes two recipes or two sets of folds: UserError names both.

    restart: folds to make anew; where recipe or folds differ as well, the whole run is cleared for them.
    """
    folder = competition.runs() / name
    folder.mkdir(parents=True, exist_ok=True)
    with run_lock(folder):
        _open(folder, competition, config, fold_table, restart)
    return folder


def forget_unbegun(folder: Path) -> None:
    """Remove a run that was refused before any fold got anywhere, unless another process trains it."""
    if not any(folder.glob("fold*")) and not any(map(is_locked, folder.glob(".fold*.lock"))):
        shutil.rmtree(folder, ignore_errors=True)


def run_lock(folder: Path) -> AbstractContextManager[None]:
    """To be held while files of the whole run are written: folds may end in several processes at once."""
    return locked(folder / ".run.lock")


def _open(
    folder: Path, competition: Competition, config: dict[str, Any], fold_table: pd.DataFrame, restart: Sequence[int]
) -> None:
    info, rests_on = read_run_info(folder), _rests_on(competition, config, fold_table)
    training = {int(lock.name[5:-5]) for lock in folder.glob(".fold*.lock") if is_locked(lock)}
    if training & set(restart):
        raise UserError(
            f"{folder}: fold {min(training & set(restart))} is being trained by another process; wait for it or stop "
            "it before --restart"
        )
    begun = bool(training) or any(folder.glob("fold*"))  # a run that never got anywhere binds nobody
    if begun and ("image_size" in info.config) != ("image_size" in config):
        raise UserError(f"{folder}: is a run of another step; give this one another name with --name")
    changed = _changed(info, competition, config, rests_on)
    if changed and begun:
        _refuse_change(folder, changed, restart, sorted({*finished_folds(folder), *training} - set(restart)))
    _clear(folder, restart, everything=bool(changed and begun))
    if restart or changed or not info.says_anything:
        begun_now = RunInfo(run=folder.name, competition=competition.name, config=config, **rests_on)
        write_run_info(folder, begun_now)


def _changed(info: RunInfo, competition: Competition, config: dict[str, Any], rests_on: dict[str, Any]) -> list[str]:
    changed = differences(info.config, config) if "config" in info.model_fields_set else []
    if info.folds_hash not in {None, rests_on["folds_hash"]}:
        changed.append(f"folds: {info.folds_hash} -> {rests_on['folds_hash']}")
    if info.targets_hash not in {None, rests_on["targets_hash"]}:
        changed.append(f"labels: {info.targets_hash} -> {rests_on['targets_hash']}")
    if info.folds_hash is not None and info.labels_hash != rests_on.get("labels_hash"):
        changed.append(f"labels.csv: {info.labels_hash or 'none'} -> {rests_on.get('labels_hash', 'none')}")
    if info.folds_hash is not None:
        changed += differences({"auxiliary": info.auxiliary}, {"auxiliary": rests_on.get("auxiliary", {})})
    return changed + (_other_pixels(info, competition) if "image" in rests_on else [])


def _refuse_change(folder: Path, changed: list[str], restart: Sequence[int], kept: list[int]) -> None:
    some = f"{'; '.join(changed[:4])}{', ...' if len(changed) > 4 else ''}"
    if not restart:
        raise UserError(
            f"{folder}: this run was made otherwise ({some}); give the new one a name with --name, or clear this one "
            "with --restart"
        )
    if kept:
        raise UserError(
            f"{folder}: another recipe or other folds ({some}) would clear fold {', '.join(map(str, kept))} too; "
            "say so with --fold all --restart, or give it another name with --name"
        )


def _clear(folder: Path, restart: Sequence[int], everything: bool) -> None:
    """Remove what is made anew: the folds' files and the tables of all of them, or all that lies there."""
    patterns = [f"fold{fold}{end}" for fold in restart for end in (".*", "_*")]
    patterns += [f"snapshots/fold{fold}_*" for fold in restart]
    patterns += ["oof.csv", "oof_top.parquet", "test.csv", "test_top.parquet"] if restart else []
    for path in [path for pattern in (["*"] if everything else patterns) for path in folder.glob(pattern)]:
        if path.is_file() and path.suffix != ".lock":
            path.unlink()


def _rests_on(competition: Competition, config: dict[str, Any], fold_table: pd.DataFrame) -> dict[str, Any]:
    """What a run stands on beside its settings, and may not change under it: folds, and how its pixels were made."""
    looks = "image_size" in config or "embed" in config
    return {
        "folds_hash": folds.digest(fold_table),
        "targets_hash": _targets(competition, fold_table),
        **decisions.digest(competition),
        **_learns_beside(competition, config),
        **({"image": competition.image.model_dump(mode="json", exclude_defaults=True)} if looks else {}),
    }


def _targets(competition: Competition, fold_table: pd.DataFrame) -> str:
    """A hash of what the training rows' labels are."""
    truth = folds.rows(index.load_index(competition), fold_table)[competition.truth]
    return digest(hash_pandas_object(truth, index=False).tolist())


def _learns_beside(competition: Competition, config: dict[str, Any]) -> dict[str, Any]:
    wanted = {name: asked.model_dump() for name, asked in competition.auxiliary.items()}
    return {"auxiliary": wanted} if wanted and config.get("train", {}).get("auxiliary") else {}


def _other_pixels(info: RunInfo, competition: Competition) -> list[str]:
    """What of the competition's `image` options has changed since the run was made."""
    if info.image is None:
        return []
    then, now = type(competition.image)(**info.image), competition.image
    return differences({"image": then.model_dump(mode="json")}, {"image": now.model_dump(mode="json")})


def write_run(
    competition: Competition,
    name: str,
    config: dict[str, Any],
    fold_table: pd.DataFrame,
    table_index: pd.DataFrame,
    preds: dict[int, tuple[np.ndarray, np.ndarray]],
    meta: dict[str, Any],
    anew: bool = True,
) -> RunInfo:
    """A run that was computed as a whole: its folder opened, its tables written, its run.json, under one lock.

    preds: {fold: (valid, test)}, as write_folds takes them. anew: an older run of that name is cleared. Back comes
    run.json.
    """
    folder = competition.runs() / name
    folder.mkdir(parents=True, exist_ok=True)
    with run_lock(folder):
        _open(folder, competition, config, fold_table, sorted(preds) if anew else ())
        write_folds(competition, folder, table_index, fold_table, preds)
        kept = {} if anew else {"folds": read_run_info(folder).folds}
        return _gather(competition, folder, fold_table, table_index, {"config": config, **kept, **meta})


def check_settings(folder: Path, config: dict[str, Any]) -> None:
    """UserError where another process has opened the run with other settings since this one did."""
    changed = differences(read_run_info(folder).config, config)
    if changed:
        raise UserError(f"{folder}: another process made it its own ({'; '.join(changed[:3])}); choose another --name")


def finished_folds(folder: Path) -> list[int]:
    """Numbers of the folds whose OOF and test tables are both written."""
    done = (int(path.stem.removeprefix("fold")) for path in folder.glob("fold*.csv") if path.stem[4:].isdigit())
    return sorted(fold for fold in done if (folder / f"fold{fold}_test.csv").exists())


def read_folds(folder: Path, wanted: Sequence[int], fold_table: pd.DataFrame) -> list[pd.DataFrame]:
    """The OOF rows of each of some finished folds; UserError where a table holds other rows than its fold."""
    tables = [read_table(folder / f"fold{fold}.csv") for fold in wanted]
    for fold, table in zip(wanted, tables, strict=True):
        own = set(fold_table.loc[fold_table["fold"] == fold, "id"])
        if own != set(table["id"]):
            raise UserError(
                f"{folder / f'fold{fold}.csv'}: cut off or edited: {len(own ^ set(table['id']))} ids are not those of "
                f"its fold; 05_predict.py --run {folder.name} makes that of a network again; else delete it and run "
                "its step again"
            )
    return tables


def finish_run(
    competition: Competition, folder: Path, fold_table: pd.DataFrame, table_index: pd.DataFrame, meta: dict[str, Any]
) -> RunInfo:
    """Gather the folds into oof.csv (all rows, in the order of folds.csv) and test.csv (the folds' mean); run.json.

    With folds missing, only run.json is written, and says which. `meta` (config, seconds...) joins it.
    """
    with run_lock(folder):
        return _gather(competition, folder, fold_table, table_index, meta)


def _gather(
    competition: Competition, folder: Path, fold_table: pd.DataFrame, table_index: pd.DataFrame, meta: dict[str, Any]
) -> RunInfo:
    wanted = sorted(fold_table["fold"].unique().tolist())
    done = [fold for fold in finished_folds(folder) if fold in wanted]
    parts, before = read_folds(folder, done, fold_table), read_run_info(folder)
    predicted_again = bool(before.command) and before.folds_done == done  # which is not what made it
    known: dict[str, Any] = {
        "run": folder.name,
        "competition": competition.name,
        "task": competition.task,
        "metric": competition.metric,
        "folds": {str(fold): fold_meta(folder, fold) for fold in done},
        **meta,
        **_rests_on(competition, meta.get("config", {}), fold_table),
        "folds_done": done,
        "folds_wanted": wanted,
        "fold_scores": {str(k): _json(score(competition, p, table_index)) for k, p in zip(done, parts, strict=True)},
        "versions": versions(),
        "command": before.command if predicted_again else cli.command(),
    }
    if done == wanted:
        oof = pd.concat(parts).set_index("id").loc[fold_table["id"]].copy().reset_index()
        write_table(oof, folder / "oof.csv")
        test = mean_test(folder, done)
        if len(test):
            write_table(test, folder / "test.csv")
        known["score"] = _json(score(competition, oof, table_index))
        values = [value for value in known["fold_scores"].values() if value is not None]
        known["fold_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    info = RunInfo(**known)
    write_run_info(folder, info)
    return info


def fold_meta(folder: Path, fold: int) -> dict[str, Any]:
    """What the training of one fold wrote down (fold<K>.json): seconds, epochs and the like; {} where nothing."""
    path = folder / f"fold{fold}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UserError(f"{path}: damaged; delete it") from None


def mean_test(folder: Path, done: Sequence[int]) -> pd.DataFrame:
    """The mean of the folds' test tables (id, pred...); UserError where a fold was predicted on other test rows."""
    tests = {fold: read_table(folder / f"fold{fold}_test.csv").set_index("id") for fold in done}
    first = tests[done[0]]
    for fold, test in tests.items():
        mismatched = set(test.index) ^ set(first.index)
        if mismatched:
            raise UserError(
                f"{folder / f'fold{fold}_test.csv'}: other test rows than fold {done[0]}'s ({len(mismatched)} differ, "
                f"such as id '{sorted(mismatched)[0]}'); predict again with 05_predict.py --run {folder.name}"
            )
    if top.is_top(first):
        values = top.mean([top.array(test.loc[first.index]) for test in tests.values()])
        return pd.DataFrame(top.columns(values), index=first.index).reset_index()
    columns = pred_columns(first)
    values = np.mean([test.loc[first.index, columns].to_numpy(dtype=float) for test in tests.values()], axis=0)
    return pd.DataFrame(values, columns=columns, index=first.index).reset_index()


def write_folds(
    competition: Competition,
    folder: Path,
    table_index: pd.DataFrame,
    fold_table: pd.DataFrame,
    preds: dict[int, tuple[np.ndarray, np.ndarray]],
) -> None:
    """fold<K>.csv and fold<K>_test.csv from {fold: (valid (n, outputs), test (m, outputs))}.

    Rows of `valid` come in the order of folds.csv, those of `test` in the order of the index.
    """
    names = index.classes(competition, table_index)
    train = folds.rows(table_index, fold_table).set_index("id", drop=False)
    test_rows = table_index[table_index["split"] == "test"]
    for fold, (valid, test) in preds.items():
        rows = train.loc[fold_table.loc[fold_table["fold"] == fold, "id"]]
        write_table(prediction_table(competition, names, test_rows, test), folder / f"fold{fold}_test.csv")
        write_table(prediction_table(competition, names, rows, valid, fold), folder / f"fold{fold}.csv")


def versions() -> dict[str, str]:
    """Versions of what made a run."""
    from importlib.metadata import PackageNotFoundError, version

    known = {"foldwise": __version__, "python": platform.python_version()}
    for name in ("torch", "timm", "numpy", "pandas", "scikit-learn", "lightgbm", "opencv-python", "pydicom"):
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            known[name] = "absent"
    return known


def _json(value: float) -> float | None:
    return None if np.isnan(value) else value
