"""Tables as they come: conditions, derived targets, names to show, dates, fold files under any name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Workplace

from foldwise import UserError
from foldwise.data.columns import read_dates
from foldwise.data.competition import condition_columns, load_competition
from foldwise.data.folds import assign_folds
from foldwise.data.index import build_index, metadata_columns
from foldwise.data.rows import binary_labels
from foldwise.data.tables import read_table

pytestmark = pytest.mark.smoke


def index_of(place: Workplace, monkeypatch: pytest.MonkeyPatch, **changes: object) -> pd.DataFrame:
    monkeypatch.setenv("FOLDWISE_ROOT", str(place.root))
    place.describe(**changes)
    return build_index(load_competition(str(place.competition)), 1)


def add(place: Workplace, **columns: object) -> pd.DataFrame:
    """More columns in both tables, cut to their rows."""
    for name in ("train", "test"):
        table = pd.read_csv(place.raw / f"{name}.csv")
        table.assign(**{c: list(values)[: len(table)] for c, values in columns.items()}).to_csv(
            place.raw / f"{name}.csv", index=False
        )
    return pd.read_csv(place.raw / "train.csv")


VIEWS = ["PA", "LL", "AP"] * 20


def test_where_leaves_rows_out_and_says_how_many(
    tiny: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = add(tiny, view=VIEWS, **{"number of views": range(60)})
    kept = table[table["view"].isin(["PA", "LL"]) & (table["number of views"] < 30)]["image_id"]
    condition = "view in ['PA', 'LL'] and `number of views` < 30"
    index = index_of(tiny, monkeypatch, where=condition)
    assert index.loc[index["split"] == "train", "id"].tolist() == kept.tolist()
    assert (index["split"] == "test").sum() == 12, "every row of the submission is predicted"
    assert "train: 40 of 60 rows of train.csv are left out by `where`" in capsys.readouterr().err
    split = {"table": "train.csv", "images": "train/{image_id}.png", "where": condition}
    assert index_of(tiny, monkeypatch, where=None, train=split)["id"].tolist() == index["id"].tolist()


def test_errors_count_rows_as_the_file_does(tiny: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tiny, view=VIEWS, sick=[None if k == 4 else k % 2 for k in range(60)])
    with pytest.raises(UserError, match=r"train.csv: row 6 \(id tr0004\): 'sick' is empty"):
        index_of(tiny, monkeypatch, where="view == 'LL'")
    index_of(tiny, monkeypatch, where="view == 'AP'")


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("viw == 'PA'", "no column 'viw', which `where` asks; did you mean 'view'"),
        ("view == 'XX'", "is true of no row; .* holds 'PA', 'LL', 'AP'"),
        ("view > 3", "`where: view > 3`"),
        ("@pd.eval('1')", "is no condition"),
        ("view.str.len() == 2", "only comparisons of columns, and, or, not, in; no attribute"),
        ("__import__('os').system('x')", "only comparisons of columns"),
        ("view == 'PA' if sick else 1", "no ifexp"),
        ("view ==", "is no condition"),
    ],
)
def test_a_condition_is_comparisons_and_no_code(
    tiny: Workplace, monkeypatch: pytest.MonkeyPatch, condition: str, message: str
) -> None:
    add(tiny, view=VIEWS)
    with pytest.raises(UserError, match=message):
        index_of(tiny, monkeypatch, where=condition)


def test_columns_of_a_condition() -> None:
    assert sorted(condition_columns("`a b` > 2 and not (c in ['x'] or d + 1 <= -e)")) == ["a b", "c", "d", "e"]


def test_positive_over_many_labels(tiny: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    table = add(tiny, dx=["mel", "bcc", "nv"] * 20)
    index = index_of(tiny, monkeypatch, target="dx", positive=["mel", "bcc"])
    assert index["target"][:60].tolist() == table["dx"].isin(["mel", "bcc"]).tolist()
    assert binary_labels(load_competition(str(tiny.competition))) == ("0", "1")
    with pytest.raises(UserError, match="no row has the label 'mle' of `positive`; did you mean 'mel'"):
        index_of(tiny, monkeypatch, positive=["mle"])
    with pytest.raises(UserError, match=r"`positive: \[mel\]` takes all others for 0"):
        index_of(tiny, monkeypatch, positive="mel")


def test_classes_with_names_to_show(trained: Workplace, tmp_path: Path) -> None:
    about = tmp_path / "named.yaml"
    about.write_text(trained.competition.read_text() + "classes: {0: well, 1: ill}\n")
    trained.run("05_predict.py", "--competition", about, "--run", "quick", "--name", "named", "--report")
    named = pd.read_csv(trained.runs / "named" / "report" / "per_class.csv")
    assert set(named["class"]) == {"well", "ill"}
    assert load_competition(str(about)).shown("1") == "ill"


def test_dates_become_numbers(
    tiny: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    days = pd.Timestamp("2019-12-30") + pd.to_timedelta(np.arange(60), "D")
    written = [str(day.date()) for day in days]
    written[5], written[6] = "someday", ""
    add(tiny, taken=written)
    meta = {"numeric": ["age"], "dates": ["taken"]}
    index = index_of(tiny, monkeypatch, metadata=meta)
    assert metadata_columns(load_competition(str(tiny.competition))) == [
        "age",
        "taken_year",
        "taken_month",
        "taken_days",
    ]
    assert index[["taken_year", "taken_month", "taken_days"]].iloc[3].tolist() == [2020, 1, 3]
    assert index["taken_days"].isna()[:60].sum() == 2 and "taken" not in index
    assert "'taken': 2 values are no dates and count as missing: someday" in capsys.readouterr().err
    index_of(tiny, monkeypatch, metadata={"numeric": ["age", "taken"]})
    assert "name it under `metadata.dates`" not in capsys.readouterr().err, "one of them is none"


@pytest.mark.parametrize("text", ["2019-05-01", "20190501", "2019-05-01 10:00:00", "2019-05-01T10:00:00Z", "1.5.2019"])
def test_ways_to_write_a_date(text: str) -> None:
    assert read_dates(pd.Series([text, None]))[0].date().isoformat() == "2019-05-01"


def test_day_or_month_first_is_told_by_the_column() -> None:
    assert read_dates(pd.Series(["05/01/2019", "25/12/2019"]))[0].month == 1
    assert read_dates(pd.Series(["05/01/2019", "12/25/2019"]))[0].month == 5


def test_folds_from_a_file_whose_ids_go_by_another_name(tiny: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_of(tiny, monkeypatch, folds={"file": "mine.csv"})
    train = index[(index["split"] == "train") & index["error"].isna()]
    patient = train["group"].str.extract(r"(\d+)")[0].astype(int)
    mine = pd.DataFrame({"row": range(len(train)), "image": train["id"], "kfold": patient % 3})
    mine.to_csv(tiny.raw / "mine.csv", index=False)
    folds = assign_folds(load_competition(str(tiny.competition)), train)
    assert folds["fold"].tolist() == (patient % 3).tolist()
    mine.drop(columns="kfold").to_csv(tiny.raw / "mine.csv", index=False)
    with pytest.raises(UserError, match="needs a column of ids and a column fold, has row, image"):
        assign_folds(load_competition(str(tiny.competition)), train)


def test_numbers_and_lists_of_json_become_ids_and_cells(tmp_path: Path) -> None:
    file = tmp_path / "rows.JSONL"
    file.write_text('{"id": 7.0, "tags": ["sea lion", "seal"], "box": [[1, 2]]}\n{"id": 12.0, "tags": [], "box": []}')
    table = read_table(file, ["id", "tags"], separator="|")
    assert table["id"].tolist() == ["7", "12"] and table["tags"].tolist() == ["sea lion|seal", ""]
    assert table["box"].tolist() == ["[[1, 2]]", ""]
    with pytest.raises(UserError, match=r"'sea lion' in 'tags' holds ' '.*separator: '\|'"):
        read_table(file, ["tags"], separator=" ")


def test_coco_categories_of_two_words_stay_whole(tmp_path: Path) -> None:
    notes = [{"id": k, "image_id": k // 2, "category_id": c, "bbox": [0, 0]} for k, c in enumerate((1, 2, 2, 2))]
    names = [{"id": 1, "name": "sea lion"}, {"id": 2, "name": "seal"}]
    images = [{"id": k, "file_name": f"{k}.jpg"} for k in range(2)]
    file = tmp_path / "coco.json"
    file.write_text(json.dumps({"images": images, "annotations": notes, "categories": names}))
    table = read_table(file, ["category"], separator="|")
    assert table["category"].tolist() == ["sea lion|seal", "seal"] and table["bbox"].nunique() == 1


def test_what_is_no_table_is_one_line(tmp_path: Path) -> None:
    for name, content, said in (
        ("a.csv", "id,label\n1,Möwe\n".encode("latin-1"), "is no text in UTF-8"),
        ("b.csv", "id,label\n1,2\n".encode("utf-16"), "is no text in UTF-8"),
        ("c.json", b'{"a.jpg": "cat"}', "holds no list of records"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: {said}"):
            read_table(tmp_path / name, ["id"])
    pd.DataFrame({"id": ["007"], "x": [1]}).to_csv(tmp_path / "d.tsv.gz", sep="\t", index=False)
    assert read_table(tmp_path / "d.tsv.gz", ["id"])["id"].tolist() == ["007"]


def test_an_empty_cell_is_no_second_label(tiny: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tiny, kind=["yes", "no", None] * 20)
    index_of(tiny, monkeypatch, target="kind", positive="yes", labels={"blank": "ignore"})
    assert binary_labels(load_competition(str(tiny.competition))) == ("no", "yes")
