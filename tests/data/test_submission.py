"""Submissions: the host's shape, joined by id, and refused before the file gets its name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import Workplace

from foldwise import UserError
from foldwise.data import index, submission
from foldwise.data.competition import Competition, load_competition

pytestmark = pytest.mark.smoke


def make(root: Path, sample: pd.DataFrame, targets: list, **description: object) -> Competition:
    """A competition with an index of one train row a target and one test row a sample row; no images needed."""
    about_file = root / "c.yaml"
    about_file.write_text(
        yaml.safe_dump(
            {
                "name": "c",
                "root": str(root),
                "task": "binary",
                "metric": "roc_auc",
                "train": {"table": "t.csv", "images": "{id}.png"},
                "sample_submission": "sample.csv",
                **description,
            }
        )
    )
    sample.to_csv(root / "sample.csv", index=False)
    about = load_competition(str(about_file))
    ids = sample.iloc[:, 0].astype(str)
    test = pd.DataFrame({"split": "test", "id": ids, "row_id": ids})
    train = pd.DataFrame({"split": "train", "id": [f"t{k}" for k in range(len(targets))], "target": targets})
    rows = pd.concat([train.assign(row_id=train["id"]), test], ignore_index=True)
    index.save_index(rows.assign(path="", error=None), about)
    return about


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path))
    return tmp_path


SAMPLE = pd.DataFrame({"image": ["007", "b", "c"], "p": 0.5})


def test_rows_come_in_the_samples_order_whatever_theirs(root: Path) -> None:
    about = make(root, SAMPLE, [0.0, 1.0])
    pred = pd.DataFrame({"id": ["c", "007", "b"], "pred": [0.3, 0.1, 0.2]})
    path = submission.write_submission(about, pred, "s", {"runs": ["one"]})
    made = pd.read_csv(path, dtype={"image": str})
    assert made["image"].tolist() == ["007", "b", "c"]  # leading zeros live
    assert made["p"].tolist() == [0.1, 0.2, 0.3]
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["runs"] == ["one"]
    assert facts["rows"] == 3


@pytest.mark.parametrize(
    ("pred", "message"),
    [
        ({"id": ["007", "b"], "pred": [0.1, 0.2]}, "no row for 'c'"),
        ({"id": ["007", "b", "c", "d"], "pred": [0.1] * 4}, "'d' is not in"),
        ({"id": ["007", "b", "c", "c"], "pred": [0.1] * 4}, "'c' stands there twice"),
        ({"id": ["007", "b", "c"], "pred": [0.1, np.nan, 0.2]}, "of b is empty"),
        ({"id": ["007", "b", "c"], "pred": [0.1, np.inf, 0.2]}, "of b is not finite"),
        ({"id": ["007", "b", "c"], "pred": [0.1, 1.5, 0.2]}, "of b is 1.5, outside 0..1"),
    ],
)
def test_a_bad_table_is_refused_and_nothing_is_written(root: Path, pred: dict, message: str) -> None:
    about = make(root, SAMPLE, [0.0, 1.0])
    with pytest.raises(UserError, match=message):
        submission.write_submission(about, pd.DataFrame(pred), "s", {})
    assert not list(root.glob("submissions/c/*"))


def test_a_test_image_that_the_sample_lacks_is_refused(root: Path) -> None:
    about = make(root, SAMPLE, [0.0, 1.0])
    SAMPLE.iloc[:2].to_csv(root / "sample.csv", index=False)
    with pytest.raises(UserError, match="'c' is not in the sample submission"):
        submission.write_submission(about, pd.DataFrame({"id": ["007", "b", "c"], "pred": 0.5}), "s", {})


def test_classes_are_matched_by_name_not_by_position(root: Path) -> None:
    sample = pd.DataFrame({"id": ["a"], "wasp": 0.0, "ant": 0.0})
    about = make(root, sample, ["ant", "wasp"], task="multiclass", metric="log_loss")
    pred = pd.DataFrame({"id": ["a"], "pred_ant": [0.9], "pred_wasp": [0.1]})
    path = submission.write_submission(about, pred, "s", {})
    assert pd.read_csv(path).iloc[0].to_dict() == {"id": "a", "wasp": 0.1, "ant": 0.9}
    with pytest.raises(UserError, match="do not match the predicted classes"):
        submission.write_submission(about, pd.DataFrame({"id": ["a"], "pred_ant": [0.9], "pred_bee": [0.1]}), "s", {})


@pytest.mark.parametrize(
    ("description", "targets", "pred", "value"),
    [
        ({"task": "binary", "metric": "accuracy"}, [0.0, 1.0], {"pred": [0.7]}, 1),
        ({"task": "binary", "metric": "f1", "submission": {"prediction": "value"}}, [0.0, 1.0], {"pred": [0.7]}, 0.7),
        ({"task": "multiclass", "metric": "accuracy"}, ["3", "10"], {"pred_3": [0.2], "pred_10": [0.8]}, 10),
        (
            {"task": "multiclass", "metric": "map@2"},
            ["x", "y", "z"],
            {"pred_x": [0.2], "pred_y": [0.5], "pred_z": [0.3]},
            "y z",
        ),
        ({"task": "regression", "metric": "quadratic_weighted_kappa"}, [0.0, 4.0], {"pred": [5.7]}, 4),
        ({"task": "regression", "metric": "rmse"}, [0.0, 4.0], {"pred": [-3.5]}, -3.5),
    ],
)
def test_labels_where_the_host_wants_labels(
    root: Path, description: dict, targets: list, pred: dict, value: object
) -> None:
    about = make(root, pd.DataFrame({"id": ["a"], "label": 0}), targets, **description)
    path = submission.write_submission(about, pd.DataFrame({"id": ["a"], **pred}), "s", {})
    assert pd.read_csv(path)["label"].tolist() == [value]


BINARY = {"task": "binary", "positive": "sick", "target": "state"}
LABELS = {"submission": {"prediction": "label"}}


@pytest.mark.parametrize(
    ("description", "sample", "pred", "written"),
    [
        (BINARY, {"state": ["healthy", "healthy"]}, {"pred": [0.2, 0.7]}, {"state": ["healthy", "sick"]}),
        (BINARY, {"state": [False, False]}, {"pred": [0.2, 0.7]}, {"state": [False, True]}),
        (
            {**BINARY, "positive": "2", "target": "grade", **LABELS},
            {"grade": [1, 1]},
            {"pred": [0.2, 0.7]},
            {"grade": [1, 2]},
        ),
        (
            {"task": "multilabel", "metric": "f1_macro", "target": ["a", "b"], **LABELS},
            {"b": [0, 0], "a": [0, 0]},
            {"pred_a": [0.4858, 0.6], "pred_b": [0.9, 0.1]},
            {"b": [1, 0], "a": [0, 1]},
        ),
        (
            {"task": "multilabel", "metric": "f1_macro", "target": ["a", "b"]},
            {"b": [0, 0], "a": [0, 0]},
            {"pred_a": [0.4858, 0.6], "pred_b": [0.9, 0.1]},
            {"b": [1, 0], "a": [0, 1]},
        ),
        (
            {"task": "multilabel", "metric": "f1_macro", "target": ["a", "b"]},
            {"b": [0.5, 0.5], "a": [0.5, 0.5]},
            {"pred_a": [0.4, 0.6], "pred_b": [0.9, 0.1]},
            {"b": [0.9, 0.1], "a": [0.4, 0.6]},
        ),
        (
            {"task": "multilabel", "metric": "f1_micro", "target": ["a", "b"]},
            {"tags": ["a b", "a b"]},
            {"pred_a": [0.8, 0.6], "pred_b": [0.9, 0.1]},
            {"tags": ["a b", "a"]},
        ),
        (
            {"task": "multiclass", "metric": "accuracy", **LABELS},
            {"label": [0, 0]},
            {"pred_ant": [0.8, 0.1], "pred_bee": [0.2, 0.9]},
            {"label": ["ant", "bee"]},
        ),  # a placeholder, as is said
    ],
)
def test_labels_are_of_the_samples_kind(root: Path, description: dict, sample: dict, pred: dict, written: dict) -> None:
    train = pd.DataFrame({"id": ["t1", "t2"], "state": ["sick", "healthy"], "grade": [2, 1]})
    train.to_csv(root / "t.csv", index=False)
    about = make(root, pd.DataFrame({"id": ["a", "b"], **sample}), ["0", "1"], **description)
    path = submission.write_submission(about, pd.DataFrame({"id": ["a", "b"], **pred}), "s", {})
    made = pd.read_csv(path)
    assert {name: made[name].tolist() for name in written} == written


@pytest.mark.parametrize(
    ("description", "shown", "pred", "said"),
    [
        (BINARY, "well", {"pred": [0.2]}, "'well' is none of the labels healthy, sick"),
        ({"task": "binary"}, "healthy", {"pred": [0.2]}, "'healthy' is none of the labels 0, 1"),
        (
            {"task": "binary", "submission": {"prediction": "value"}},
            "no",
            {"pred": [0.2]},
            "holds numbers such as '0.2', the sample text such as 'no'",
        ),
        (
            {"task": "multiclass", "metric": "accuracy"},
            0,
            {"pred_ant": [0.2], "pred_bee": [0.8]},
            "holds text such as 'bee', the sample numbers such as '0'",
        ),
        (
            {"task": "multiclass", "metric": "accuracy"},
            "wasp",
            {"pred_ant": [0.2], "pred_bee": [0.8]},
            "'wasp' is none of the labels ant, bee; if it only holds the place",
        ),
        ({"task": "regression", "metric": "rmse"}, "low", {"pred": [0.2]}, "see `submission: prediction`"),
    ],
)
def test_values_of_another_kind_than_the_samples_are_refused(
    root: Path, description: dict, shown: object, pred: dict, said: str
) -> None:
    pd.DataFrame({"id": ["t1", "t2"], "state": ["sick", "healthy"]}).to_csv(root / "t.csv", index=False)
    about = make(root, pd.DataFrame({"id": ["a"], "label": [shown]}), [0.0, 1.0], **description)
    with pytest.raises(UserError, match=re.escape(said)):
        submission.write_submission(about, pd.DataFrame({"id": ["a"], **pred}), "s", {})
    assert not list(root.glob("submissions/c/*"))


def test_blend_submits_the_tiny_competition(trained: Workplace) -> None:
    trained.run("06_blend.py", "--name", "s")
    made = pd.read_csv(trained.submissions / "s.csv")
    sample = pd.read_csv(trained.raw / "sample_submission.csv")
    assert list(made.columns) == list(sample.columns)
    assert made["image_id"].tolist() == sample["image_id"].tolist()
    assert made["sick"].between(0, 1).all()
    assert json.loads((trained.submissions / "s.json").read_text())["name"] == "s"


def test_probabilities_of_classes_sum_to_one_whatever_was_blended(root: Path) -> None:
    about = make(
        root, pd.DataFrame({"id": ["x", "y"], "a": 0.5, "b": 0.5}), ["a", "b"], task="multiclass", metric="log_loss"
    )
    pred = pd.DataFrame({"id": ["x", "y"], "pred_a": [0.9, 0.25], "pred_b": [0.9, 0.75]})  # of ranks, say
    made = pd.read_csv(submission.write_submission(about, pred, "s", {}))
    assert made[["a", "b"]].to_numpy().tolist() == [[0.5, 0.5], [0.25, 0.75]]


def test_what_step_6_would_refuse_is_known_before_anything_is_trained(root: Path) -> None:
    about = make(root, SAMPLE, [0.0, 1.0])
    table = index.load_index(about)
    assert submission.objection(about, table, []) is None
    SAMPLE.head(2).to_csv(root / "sample.csv", index=False)
    remedy = f"; correct `sample_submission`, `test` or `submission: row_id` in {about.file}"
    assert submission.objection(about, table, []) == f"the test table: 'c' is not in the sample submission{remedy}"
    SAMPLE.tail(2).assign(**{SAMPLE.columns[0]: ["ghost", "ghoul"]}).to_csv(root / "sample.csv", index=False)
    assert str(submission.objection(about, table, [])).startswith(
        "the test table: no row for 'ghost' and 1 more of the sample submission, and the sample submission none for '"
    )
    SAMPLE.assign(q=0.5).to_csv(root / "sample.csv", index=False)
    assert "of which one is predicted" in str(submission.objection(about, table, []))


def test_columns_that_nothing_predicts_take_text_too_or_are_named(root: Path) -> None:
    sample = pd.DataFrame({"image": ["a", "b"], "unit": "mm", "p": 0.5})
    about = make(root, sample, [0.0, 1.0], target="p", submission={"fill": {"unit": "mm"}})
    pred = pd.DataFrame({"id": ["b", "a"], "pred": [0.3, 0.1]})
    assert submission.write_submission(about, pred, "s", {}).read_text() == "image,unit,p\na,mm,0.1\nb,mm,0.3\n"
    about = make(root, sample, [0.0, 1.0], target="p")
    assert "fill: {unit: 0}" in str(submission.objection(about, index.load_index(about), []))
    make(root, sample, [0.0, 1.0])
    sample[["image"]].to_csv(root / "sample.csv", index=False)
    assert "no column beside 'image'" in str(submission.objection(about, index.load_index(about), []))
