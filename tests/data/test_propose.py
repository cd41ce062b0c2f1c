"""A competition file proposed for raw folders in the layouts of real competitions, made up small."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import shared

from foldwise import UserError
from foldwise.data.competition import load_competition
from foldwise.data.index import build_index
from foldwise.data.propose import propose, write_proposal

pytestmark = pytest.mark.smoke
RNG = np.random.default_rng(0)
N, M = 60, 12  # training and test rows
IDS = [f"{k:04x}" for k in RNG.permutation(60000)[: N + M]]


def pictures(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        kept = cv2.imencode(Path(name).suffix, RNG.integers(0, 255, (8, 8, 3), np.uint8))[1]
        (folder / name).write_bytes(kept.tobytes())


def zipped(folder: Path, name: str) -> None:
    """The folder `name` as name.zip, its files flat, and gone."""
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        for file in sorted((folder / name).iterdir()):
            archive.write(file, file.name)
    shutil.rmtree(folder / name)


def write(folder: Path, **tables: pd.DataFrame) -> None:
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)


def grades(folder: Path) -> dict[str, Any]:
    """A grade an image, tables and folders of both splits."""
    pictures(folder, [f"train_images/{i}.png" for i in IDS[:N]] + [f"test_images/{i}.png" for i in IDS[N:]])
    write(
        folder,
        train=pd.DataFrame({"id_code": IDS[:N], "diagnosis": np.arange(N) % 5}),
        test=pd.DataFrame({"id_code": IDS[N:]}),
        sample_submission=pd.DataFrame({"id_code": IDS[N:], "diagnosis": 0}),
    )
    return {
        "task": "multiclass",
        "metric": "quadratic_weighted_kappa",
        "target": "diagnosis",
        "id": "id_code",
        "train": {"table": "train.csv", "images": "train_images/{id_code}.png"},
        "test": {"table": "test.csv", "images": "test_images/{id_code}.png"},
    }


def breeds(folder: Path) -> dict[str, Any]:
    """A column a class in the sample, no table of the test rows."""
    pictures(folder, [f"train/{i}.jpg" for i in IDS[:N]] + [f"test/{i}.jpg" for i in IDS[N:]])
    names = ["beagle", "boxer", "pug"]
    write(
        folder,
        labels=pd.DataFrame({"id": IDS[:N], "breed": np.array(names)[np.arange(N) % 3]}),
        sample_submission=pd.DataFrame({"id": IDS[N:], **dict.fromkeys(names, 0.33)}),
    )
    return {
        "task": "multiclass",
        "metric": "log_loss",
        "target": "breed",
        "test": {"table": "sample_submission.csv", "images": "test/{id}.jpg"},
    }


def catheters(folder: Path) -> dict[str, Any]:
    """Several labels a row, patients, no table of the test rows, a table of annotations beside."""
    pictures(folder, [f"train/{i}.jpg" for i in IDS[:N]] + [f"test/{i}.jpg" for i in IDS[N:]])
    labels = {name: RNG.integers(0, 2, N) for name in ("ETT - Abnormal", "NGT - Normal", "CVC - Borderline")}
    write(
        folder,
        train=pd.DataFrame({"UID": IDS[:N], **labels, "PatientID": [f"p{k % 40}" for k in range(N)]}),
        train_annotations=pd.DataFrame({"UID": IDS[:9], "data": "[[1, 2]]"}),
        sample_submission=pd.DataFrame({"UID": IDS[N:], **dict.fromkeys(labels, 0)}),
    )
    return {"task": "multilabel", "target": list(labels), "group": "PatientID", "metric": "roc_auc"}


def breasts(folder: Path) -> dict[str, Any]:
    """Several images a submission row, in a folder a patient; metadata that both tables have."""
    patient = [f"{1000 + k // 2}" for k in range(N + M)]
    pictures(folder, [f"train_images/{p}/{i}.png" for p, i in zip(patient[:N], IDS[:N], strict=True)])
    pictures(folder, [f"test_images/{p}/{i}.png" for p, i in zip(patient[N:], IDS[N:], strict=True)])
    common = pd.DataFrame(
        {
            "patient_id": patient,
            "image_id": IDS,
            "age": RNG.normal(60, 9, N + M).round(1),
            "laterality": np.array(["L", "R"])[np.arange(N + M) % 2],
        }
    )
    test = common[N:].assign(prediction_id=[f"{p}_L" for p in patient[N:]])
    write(
        folder,
        train=common[:N].assign(cancer=np.arange(N) % 7 == 0).astype({"cancer": int}),
        test=test,
        sample_submission=pd.DataFrame({"prediction_id": test["prediction_id"].unique(), "cancer": 0.02}),
    )
    return {
        "task": "binary",
        "target": "cancer",
        "id": "image_id",
        "group": "patient_id",
        "train": {"table": "train.csv", "images": "train_images/{patient_id}/{image_id}.png"},
        "submission": {"row_id": "prediction_id", "aggregate": "mean"},
        "metadata": {"numeric": ["age"], "categorical": ["laterality"]},
    }


def leaves(folder: Path) -> dict[str, Any]:
    """Ids with their suffix, integers as labels, their names in a JSON."""
    pictures(folder, [f"train_images/{i}.jpg" for i in IDS[:N]] + [f"test_images/{i}.jpg" for i in IDS[N:]])
    write(
        folder,
        train=pd.DataFrame({"image_id": [f"{i}.jpg" for i in IDS[:N]], "label": np.arange(N) % 5}),
        sample_submission=pd.DataFrame({"image_id": [f"{i}.jpg" for i in IDS[N:]], "label": 4}),
    )
    names = {str(k): f"disease {k}" for k in range(5)}
    (folder / "label_num_to_disease_map.json").write_text(json.dumps(names))
    return {
        "task": "multiclass",
        "target": "label",
        "classes": names,
        "train": {"table": "train.csv", "images": "train_images/{image_id}"},
        "test": {"table": "sample_submission.csv", "images": "test_images/{image_id}"},
    }


def pets(folder: Path) -> dict[str, Any]:
    """A regression with flags."""
    pictures(folder, [f"train/{i}.jpg" for i in IDS[:N]] + [f"test/{i}.jpg" for i in IDS[N:]])
    flags = {"Face": np.arange(N + M) % 2, "Blur": np.arange(N + M) % 3 // 2}
    table = pd.DataFrame({"Id": IDS, **flags})
    write(
        folder,
        train=table[:N].assign(Pawpularity=RNG.permutation(N) + 1),
        test=table[N:],
        sample_submission=pd.DataFrame({"Id": IDS[N:], "Pawpularity": 38.9}),
    )
    return {"task": "regression", "target": "Pawpularity", "metric": "rmse"}


def seedlings(folder: Path) -> dict[str, Any]:
    """A folder a class, and a flat folder of test images."""
    pictures(folder, [f"train/{('Maize', 'Cleavers')[k % 2]}/{i}.png" for k, i in enumerate(IDS[:N])])
    pictures(folder, [f"test/{i}.png" for i in IDS[N:]])
    write(folder, sample_submission=pd.DataFrame({"file": [f"{i}.png" for i in IDS[N:]], "species": "Maize"}))
    return {"task": "multiclass", "metric": "accuracy", "train": {"folders": "train"}, "test": {"images": "test"}}


def cacti(folder: Path) -> dict[str, Any]:
    """Images in flat ZIP files, ids with their suffix."""
    pictures(folder, [f"train/{i}.jpg" for i in IDS[:N]] + [f"test/{i}.jpg" for i in IDS[N:]])
    for name in ("train", "test"):
        zipped(folder, name)
    write(
        folder,
        train=pd.DataFrame({"id": [f"{i}.jpg" for i in IDS[:N]], "has_cactus": np.arange(N) % 2}),
        sample_submission=pd.DataFrame({"id": [f"{i}.jpg" for i in IDS[N:]], "has_cactus": 0.5}),
    )
    return {
        "task": "binary",
        "target": "has_cactus",
        "train": {"table": "train.csv", "images": "train/{id}"},
        "test": {"table": "sample_submission.csv", "images": "test/{id}"},
    }


def tissues(folder: Path) -> dict[str, Any]:
    """TIFF, digits with leading zeros as ids, train_labels.csv."""
    ids = [f"{k:05d}" for k in range(N + M)]
    pictures(folder, [f"train/{i}.tif" for i in ids[:N]] + [f"test/{i}.tif" for i in ids[N:]])
    write(
        folder,
        train_labels=pd.DataFrame({"id": ids[:N], "label": np.arange(N) % 2}),
        sample_submission=pd.DataFrame({"id": ids[N:], "label": 0}),
    )
    return {
        "task": "binary",
        "metric": "roc_auc",
        "train": {"table": "train_labels.csv", "images": "train/{id}.tif"},
        "test": {"table": "sample_submission.csv", "images": "test/{id}.tif"},
    }


def margins(folder: Path) -> dict[str, Any]:
    """Images of both splits in one folder, many numeric columns, a column a species in the sample."""
    ids = RNG.permutation(N + M) + 1
    pictures(folder, [f"images/{i}.jpg" for i in ids])
    features = {f"{kind}{k}": RNG.random(N + M) for kind in ("margin", "shape") for k in range(1, 9)}
    table = pd.DataFrame({"id": ids, **features})
    species = [f"Acer_{k}" for k in range(6)]
    train = table[:N]
    train.insert(1, "species", np.array(species)[np.arange(N) % 6])
    write(
        folder,
        train=train,
        test=table[N:],
        sample_submission=pd.DataFrame({"id": ids[N:], **dict.fromkeys(species, 1 / 6)}),
    )
    return {
        "task": "multiclass",
        "metric": "log_loss",
        "target": "species",
        "train": {"table": "train.csv", "images": "images/{id}.jpg"},
        "test": {"table": "test.csv", "images": "images/{id}.jpg"},
        "metadata": {"numeric": list(features)},
    }


def rusts(folder: Path) -> dict[str, Any]:
    """One-hot columns, ids that name their split, one folder."""
    ids = [f"Train_{k}" for k in range(N)] + [f"Test_{k}" for k in range(M)]
    pictures(folder, [f"images/{i}.jpg" for i in ids])
    labels = {
        name: (np.arange(N) % 4 == k).astype(int) for k, name in enumerate(("healthy", "multiple", "rust", "scab"))
    }
    write(
        folder,
        train=pd.DataFrame({"image_id": ids[:N], **labels}),
        test=pd.DataFrame({"image_id": ids[N:]}),
        sample_submission=pd.DataFrame({"image_id": ids[N:], **dict.fromkeys(labels, 0.25)}),
    )
    return {
        "task": "multiclass",
        "metric": "roc_auc",
        "target": list(labels),
        "test": {"table": "test.csv", "images": "images/{image_id}.jpg"},
    }


def moles(folder: Path) -> dict[str, Any]:
    """Patients, metadata with dates, columns that only train has; the split two folders down."""
    pictures(folder, [f"jpeg/train/{i}.jpg" for i in IDS[:N]] + [f"jpeg/test/{i}.jpg" for i in IDS[N:]])
    common = pd.DataFrame(
        {
            "image_name": IDS,
            "patient_id": [f"IP_{k // 2}" for k in range(N + M)],
            "sex": np.array(["male", "female"])[np.arange(N + M) % 2],
            "age_approx": RNG.integers(4, 16, N + M) * 5,
            "taken": pd.date_range("2019-12-01", periods=N + M).strftime("%Y-%m-%d"),
        }
    )
    target = (np.arange(N) % 5 == 0).astype(int)
    diagnosis = np.where(target, "melanoma", "unknown")
    write(
        folder,
        train=common[:N].assign(diagnosis=diagnosis, target=target),
        test=common[N:],
        sample_submission=pd.DataFrame({"image_name": IDS[N:], "target": 0}),
    )
    return {
        "task": "binary",
        "target": "target",
        "group": "patient_id",
        "train": {"table": "train.csv", "images": "jpeg/train/{image_name}.jpg"},
        "test": {"table": "test.csv", "images": "jpeg/test/{image_name}.jpg"},
        "metadata": {"numeric": ["age_approx"], "categorical": ["sex"], "dates": ["taken"]},
    }


def whales(folder: Path) -> dict[str, Any]:
    """Many classes of few images, up to five names in a cell of the sample."""
    pictures(folder, [f"train/{i}.jpg" for i in IDS[:N]] + [f"test/{i}.jpg" for i in IDS[N:]])
    names = [f"w_{k:03d}" for k in range(24)] + ["new_whale"]
    write(
        folder,
        train=pd.DataFrame({"Image": [f"{i}.jpg" for i in IDS[:N]], "Id": np.array(names)[np.arange(N) % 25]}),
        sample_submission=pd.DataFrame(
            {"Image": [f"{i}.jpg" for i in IDS[N:]], "Id": " ".join(["new_whale", *names[:4]])}
        ),
    )
    return {
        "task": "multiclass",
        "metric": "map@5",
        "id": "Image",
        "target": "Id",
        "test": {"table": "sample_submission.csv", "images": "test/{Image}"},
    }


LAYOUTS = [grades, breeds, catheters, breasts, leaves, pets, seedlings, cacti, tissues, margins, rusts, moles, whales]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_told_without_an_edit(
    layout: Callable[[Path], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path / "out"))
    expected = layout(tmp_path / "raw")
    path, proposal = write_proposal("made", str(tmp_path / "raw"), str(tmp_path / "made.yaml"))
    written = yaml.safe_load(path.read_text())
    assert {key: written.get(key) for key in expected} == expected, path.read_text()
    assert all("  # " in line for line in path.read_text().splitlines()), "each line has its reason"
    table = build_index(load_competition(str(path)), 1)
    assert table["split"].value_counts().to_dict() == {"train": N, "test": M} and table["error"].isna().all()
    assert any(doubt.startswith("metric") for doubt in proposal.doubts)
    with pytest.raises(UserError, match="is there already"):
        write_proposal("made", str(tmp_path / "raw"), str(path))


def test_real_data_is_told(tmp_path: Path) -> None:
    shipped = yaml.safe_load((Path(__file__).parents[2] / "src/competitions/skin1500.yaml").read_text())
    lines = {key: value for key, value, *_ in propose("skin1500", shared("data", "skin1500")).lines}
    for key in ("task", "metric", "id", "target", "train", "test", "sample_submission", "metadata"):
        assert lines[key] == shipped[key], key


def test_what_is_no_competition_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        propose("x", tmp_path / "none")
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match="holds no images"):
        propose("x", tmp_path)
    pictures(tmp_path, [f"photos/{i}.jpg" for i in IDS[:4]])
    with pytest.raises(UserError, match="no table of labels, and no folder a class"):
        propose("x", tmp_path)


def test_separators_late_ids_and_doubtful_paths_are_seen(tmp_path: Path) -> None:
    pictures(tmp_path, [f"train/{k % 5}/{k}.jpg" for k in range(20)] + [f"test/{k}.jpg" for k in range(50, 54)])
    cells = ["red", "dark blue|red", "dark blue", "green|red"] * 5
    write(
        tmp_path,
        train=pd.DataFrame({"image": range(20), "colours": cells}),
        test=pd.DataFrame({"image": range(50, 54)}),
        sample_submission=pd.DataFrame({"colours": ["red"] * 4, "image": [51, 50, 53, 52]}),
    )
    proposal = propose("x", tmp_path)
    assert proposal.value("task") == "multilabel" and proposal.value("labels") == {"separator": "|"}
    assert proposal.value("id") == "image" and proposal.value("submission") == {"id": "image"}
    assert any(doubt.startswith("train: found for ") for doubt in proposal.doubts)
