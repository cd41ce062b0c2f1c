"""Real competitions' files in small, from the raw folder to a validated submission: no row may be shifted."""

from __future__ import annotations

from pathlib import Path

import layouts
import numpy as np
import pandas as pd
import pytest

from foldwise.data import image, index, propose, submission
from foldwise.data.competition import Competition, load_competition


def predicted(competition: Competition, labels: list[str], rows: pd.DataFrame) -> pd.DataFrame:
    """A test table as a model would write it that reads the blocks of every picture."""
    raw = competition.raw()
    shown = np.array([layouts.seen(image.read_image(raw / path, 32, competition.image)) for path in rows["path"]])
    names = index.classes(competition, index.load_index(competition))
    if not names:
        value = 1 + 109 * shown[:, 0] if competition.task == "regression" else np.clip(shown[:, 0], 0, 1)
        return pd.DataFrame({"id": rows["id"], "pred": value})
    chosen = np.clip(shown[:, [labels.index(name) for name in names]], 1e-3, 1)
    if competition.task != "multilabel":
        chosen /= chosen.sum(axis=1, keepdims=True)
    return pd.DataFrame({"id": rows["id"], **{f"pred_{name}": chosen[:, c] for c, name in enumerate(names)}})


def said(competition: Competition, row: pd.Series, truth: object) -> object:
    """What a submission's row says, in the words of the truth."""
    columns = list(row.index[1:])
    if isinstance(truth, set) and len(columns) > 1:
        return {column for column in columns if row[column] > 0.5}
    if isinstance(truth, set):
        return set(str(row.iloc[1]).split()) if pd.notna(row.iloc[1]) else set()
    if len(columns) > 1 and not competition.submission.fill:
        return columns[int(np.argmax(row.iloc[1:].to_numpy(dtype=float)))]
    if isinstance(truth, str):
        return str(row.iloc[1]).split()[0] if competition.metric.startswith("map@") else str(row.iloc[1])
    if competition.task in {"regression", "binary"} or competition.submission.melted:
        return int(float(row.iloc[1]) > (50 if competition.task == "regression" else 0.5))
    return int(row.iloc[1])


def played(competition: Competition, raw: layouts.Raw) -> None:
    """Index, then submission, of a model that reads every picture; asserts that each row says what its own shows."""
    table = index.build_index(competition, workers=1)
    train, test = (table[table["split"] == split] for split in ("train", "test"))
    assert table["error"].isna().all(), table["error"].dropna().iloc[0]
    assert len(train) >= layouts.TRAIN and train["id"].is_unique
    index.save_index(table, competition)
    index.learn_scaling(competition, table)
    some = train.iloc[:: len(train) // 8]
    pred = predicted(competition, raw.labels, some)  # the training rows' pictures are their labels'
    if competition.task == "multiclass":
        best = pred.set_index("id").idxmax(axis=1).str.removeprefix("pred_")
        assert best.tolist() == some["target"].tolist()
    elif competition.task == "binary":
        assert (pred["pred"] > 0.5).tolist() == (some["target"] == 1).tolist()
    elif competition.task == "multilabel":
        assert ((pred.iloc[:, 1:] > 0.5).to_numpy() == (some[competition.truth] == 1).to_numpy()).all()

    pred = predicted(competition, raw.labels, test)
    path = submission.write_submission(competition, pred.sample(frac=1, random_state=0), "planted", {})
    frame = pd.read_csv(path, dtype={0: str}, keep_default_na=False)
    sample = submission.read_sample(competition, table, pred)
    assert list(frame) == list(sample) and frame.iloc[:, 0].tolist() == sample.iloc[:, 0].tolist()
    for k, row in frame.iterrows():
        key = (row.iloc[0], k) if (row.iloc[0], k) in raw.truth else row.iloc[0]
        got = said(competition, row, raw.truth[key])
        assert got == raw.truth[key], f"{key} says {got}, its picture {raw.truth[key]}"


def _needs_7z(name: str) -> None:
    if name == "invasive-species-monitoring":
        pytest.importorskip("py7zr", reason="py7zr reads 7z archives; pip install py7zr")


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_every_test_image_comes_back_under_its_own_id(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _needs_7z(name)
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path))
    raw = layouts.make(name, tmp_path / "input" / name)
    played(load_competition(name), raw)


BY_HAND = {  # layouts whose proposed file needs a hand
    "osic-pulmonary-fibrosis-progression": "a row is a patient and a week, which the sample alone names",
    "hms-harmful-brain-activity-classification": "the sample has a row for each image, and repeats ids",
}


@pytest.mark.parametrize("name", sorted(set(layouts.LAYOUTS) - set(BY_HAND)))
def test_the_proposed_file_is_right_without_an_edit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _needs_7z(name)
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path))
    raw = layouts.make(name, tmp_path / "input" / name)
    path, _ = propose.write_proposal(name, None, str(tmp_path / f"{name}.yaml"))
    proposed, ours = load_competition(str(path)), load_competition(name)
    assert proposed.task == ours.task and (proposed.targets == ours.targets or not ours.train.sources)
    played(proposed, raw)
