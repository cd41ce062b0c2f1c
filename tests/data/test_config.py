"""Competition files, recipes, overrides: what is refused, and that the message says how to mend it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from foldwise import UserError
from foldwise.core import paths
from foldwise.core.files import digest
from foldwise.core.schema import describe
from foldwise.data.competition import Competition, load_competition
from foldwise.data.recipe import NEEDS, Recipe, differences, load_recipe, recipe_from, recipe_settings
from foldwise.data.runs import read_run_info

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("file", sorted(paths.COMPETITIONS.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_competitions_are_valid(file: Path) -> None:
    about = load_competition(file.stem)
    assert about.name == file.stem


@pytest.mark.parametrize("file", sorted(paths.RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_recipes_are_valid(file: Path) -> None:
    assert load_recipe(file.stem).image_size >= 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrc": "roc_auc"}, "unknown key 'metrc'; did you mean 'metric'?"),
        ({"folds": {"n": 5, "sed": 1}}, "unknown key 'folds.sed'; did you mean 'folds.seed'?"),
        ({"folds": {"n": 1}}, "folds.n"),
        ({"task": "binry"}, "task"),
        ({"target": ["a", "b"]}, "multilabel"),
        ({"train": {"table": "train.csv", "images": "train"}}, "column in braces"),
        ({"train": {"images": "train"}}, "target_pattern"),
        ({"name": "../x"}, "name"),
        ({"train": {"images": "train", "target_pattern": "^(cat|dog"}}, "train.target_pattern: no regex: missing )"),
        ({"train": {"images": "train", "target_pattern": "cat|dog"}}, "needs a group in parentheses"),
        ({"group_pattern": "(["}, "group_pattern: no regex: unterminated character set"),
        ({"derive": {"laterality": ["image_id", "*"]}}, "derive.laterality.1: no regex: nothing to repeat"),
    ],
)
def test_bad_competition_is_one_clear_line(tmp_path: Path, change: dict, message: str) -> None:
    good = {"name": "x", "task": "binary", "metric": "roc_auc", "train": {"table": "t.csv", "images": "{id}.png"}}
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({**good, **change}))
    with pytest.raises(UserError) as error:
        load_competition(str(path))
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_competition_proposes_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'demo'"):
        load_competition("demoo")


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: x\ntask: [binary\n")
    with pytest.raises(UserError, match=r"x\.yaml, line 3"):
        load_competition(str(path))


@pytest.mark.parametrize("mount", ["competitions/{}", "{}", "datasets/someone/{}"])
def test_raw_folder_is_found_at_every_kaggle_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mount: str) -> None:
    monkeypatch.setattr(paths, "KAGGLE_INPUT", tmp_path)
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path / "out"))
    about = load_competition("intel-image-classification")
    with pytest.raises(UserError, match="were not found in"):
        about.raw()
    place = tmp_path / mount.format(about.name)
    place.mkdir(parents=True)
    assert about.raw() == place


def test_slug_names_the_folder_where_it_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "KAGGLE_INPUT", tmp_path)
    place = tmp_path / "siim-isic-melanoma-classification"
    place.mkdir()
    assert load_competition("siim-isic-melanoma-jpeg").raw() == place


def test_outputs_go_to_kaggle_working_where_the_repository_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FOLDWISE_ROOT", raising=False)
    monkeypatch.setattr(paths, "KAGGLE_WORKING", tmp_path)
    monkeypatch.setattr(paths.os, "access", lambda path, mode: False)
    assert paths.output_root() == tmp_path


def test_recipes_inherit_and_overrides_win(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("image_size: 64\ntrain: {epochs: 3, lr: 1e-3}\n")
    (tmp_path / "b.yaml").write_text("base: a\ntrain: {epochs: 5}\nmodel: {kwargs: {drop_rate: 0.1}}\n")
    recipe = load_recipe(str(tmp_path / "b.yaml"), ["seed=7", "model.kwargs={drop_rate: 0.5}", "train.lr=2e-3"])
    assert (recipe.image_size, recipe.train.epochs, recipe.train.lr, recipe.seed) == (64, 5, 2e-3, 7)
    assert recipe.model.kwargs == {"drop_rate": 0.5}


def test_recipes_that_inherit_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b\n")
    (tmp_path / "b.yaml").write_text("base: a\n")
    with pytest.raises(UserError, match="circle"):
        load_recipe(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=1", "override train.epoch=1: unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        ("epochs=1", "did you mean 'train.epochs'?"),
        ("train.dropout=0.1", "did you mean 'model.head.dropout' or 'model.fusion.dropout'?"),
        ("predict.zoom=1", "known in predict: average, batch_size, crop_fraction, crops, scales, tta"),
        ("predict.tta=d5", "override predict.tta=d5: predict.tta: Input should be 'none', 'flip' or 'd4'"),
        ("trian.epochs=1", "did you mean 'train'"),
        ("train.epochs", "expected key=value"),
        ("train.epochs=0", "train.epochs"),
        ("train.lr=fast", "train.lr"),
        ("model.mode=partial", "unfreeze_from"),
    ],
)
def test_bad_override_is_one_clear_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("baseline", [override])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("idle", "needs"),
    [
        (["model.weights=w.pth", "model.mode=scratch"], "model.mode"),
        (["model.weights=w.pth", "model.init_from=other"], "model.init_from=null"),
        (["model.unfreeze_from=layer4"], "model.mode=partial"),
        (["model.labels=names.txt"], "model.mode=as_is"),
        (["model.label_map={a: [b]}"], "model.mode=as_is"),
        (["augment.mixup=0.5", "model.mode=as_is", "model.labels=names.txt"], "nothing learns"),
        (["model.head.hidden=8", "model.mode=as_is", "model.labels=names.txt"], "nothing learns"),
        (["train.layer_decay=0.8", "model.mode=frozen"], "the head alone learns"),
        (["model.head.samples=5"], "model.head.dropout"),
        (["model.fusion.joint=64"], "model.metadata=true"),
        (["model.fusion={hidden: [64], dropout: 0.5}", "model.metadata=true"], "model.fusion.joint"),
        (["target.positive=[mel]"], "target.column"),
        (["train.pseudo=other", "target.column=dx"], "target.column=null"),
        (["train.focal_gamma=1"], "train.loss=focal"),
        (["train.class_weights=sqrt", "train.loss=asymmetric"], "train.loss=ce, bce or focal"),
        (["train.snapshots=true"], "train.cycles=<two or more>"),
        (["train.snapshots=true", "train.schedule=step"], "train.schedule=cosine"),
        (["train.checkpoint=best", "train.snapshots=true", "train.cycles=2"], "train.snapshots=false"),
        (["train.cycles=2", "train.schedule=onecycle"], "train.schedule=cosine"),
        (["train.patience=5"], "train.schedule=plateau"),
        (["train.final_lr=0.5", "train.schedule=constant"], "train.schedule"),
        (["train.ema_decay=0.9"], "train.averaging=ema"),
        (["train.swa_start=0.9", "train.averaging=ema"], "train.averaging=swa"),
        (["train.distill=other", "train.distill_weight=0"], "train.distill_weight above 0"),
        (["train.distill_weight=0.1"], "train.distill=<run>"),
        (["train.pseudo_keep=0.1"], "train.pseudo=<run>"),
        (["augment.cutmix=0.5", "train.batch_size=1"], "train.batch_size of two"),
        (["augment.mixup_alpha=0.1"], "augment.mixup above 0"),
        (["augment.cutmix_alpha=0.1"], "augment.cutmix above 0"),
        (["predict.crop_fraction=0.5"], "predict.crops=5 or 10"),
        (["predict.average=logit"], "several views"),
    ],
)
def test_a_setting_that_another_one_voids_is_refused_with_both_names(idle: list[str], needs: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("baseline", idle)
    key = idle[0].split("=")[0]
    assert f"{key}" in str(error.value) and "has no effect" in str(error.value) and needs in str(error.value)


def test_settings_with_what_they_need_are_taken() -> None:
    load_recipe("baseline", ["train.snapshots=3", "train.schedule=onecycle"])
    with pytest.raises(UserError, match=r"it needs as many train.epochs"):
        load_recipe("baseline", ["train.snapshots=3", "train.epochs=2"])
    load_recipe("baseline", ["train.snapshots=true", "train.cycles=2", "predict.average=logit"])
    load_recipe("baseline", ["model.weights=w.pth", "model.pretrained=false", "model.mode=frozen"])
    load_recipe("baseline", ["augment={mixup: 0.5, cutmix: 0.5, mixup_alpha: 0.1, cutmix_alpha: 0.2}"])
    with pytest.raises(UserError, match="their sum is 1 at most"):
        load_recipe("baseline", ["augment={mixup: 1.0, cutmix: 0.5}"])


def test_every_name_in_the_list_of_needs_is_a_setting() -> None:
    names = {*described(Recipe), "model.second.weights"}
    for keys, _, _ in NEEDS:
        for key in keys.split():
            assert any(name == key or name.startswith(f"{key}.") for name in names), key


@pytest.mark.parametrize(
    ("model", "some"),
    [
        (Recipe, {"image_size", "train.lr", "model.weights", "model.second", "augment.mixup", "predict.tta", "seed"}),
        (Competition, {"task", "metric", "metric.function", "train.images", "test", "folds.n", "image.window"}),
    ],
)
def test_help_lists_every_key_once_with_its_meaning(model: type[BaseModel], some: set[str]) -> None:
    names = [line.split("=")[0] for line in describe(model).splitlines() if not line.startswith(" ")]
    assert len(names) == len(set(names)) and some <= set(names)
    assert all(len(words) > 8 and "None" not in words for words in described(model).values())


def described(model: type[BaseModel]) -> dict[str, str]:
    """What is said below each key, by key; the key's own line first."""
    parts = re.split(r"\n(?! )", describe(model))
    return {part.split("=")[0]: " ".join(part.split()) for part in parts}


def test_help_shows_what_a_key_may_hold() -> None:
    lines = described(Recipe) | described(Competition)
    for key, values in {
        "train.loss": "[default, ce, bce, focal, asymmetric, ordinal, mse, mae, huber]",
        "train.schedule": "[cosine, onecycle, step, plateau, constant]",
        "train.label_smoothing": "[>= 0, < 1]",
        "augment.preset": "melanoma2020]",
        "train.compile": "[true, false]",
        "task": "[binary, multiclass, multilabel, soft, regression]",
        "metric": "[roc_auc, ",
        "labels.uncertain": "[0, 0.5, 1, ignore]",
    }.items():
        assert values in lines[key], lines[key]
    assert lines["task"].startswith("task=(required)")


def test_settings_and_digest_do_not_depend_on_how_a_recipe_was_written(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: {epochs: 3}\n")
    (tmp_path / "b.yaml").write_text("base: a\n")
    a, b = (recipe_settings(load_recipe(str(tmp_path / f"{name}.yaml"))) for name in "ab")
    assert digest(a) == digest(b)
    changed = recipe_settings(load_recipe(str(tmp_path / "a.yaml"), ["train.epochs=4"]))
    assert differences(a, changed) == ["train.epochs: 3 -> 4"]


def test_older_keys_are_read_under_their_new_names(tmp_path: Path) -> None:
    """In recipes and their bases, on the command line, and in the run.json of a run that was made before."""
    (tmp_path / "base.yaml").write_text("train: {cpu_step: bf16}\nmodel: {thaw_epochs: 2}\n")
    (tmp_path / "new.yaml").write_text("base: base\ntrain: {precision: plain}\n")
    made = load_recipe(
        str(tmp_path / "new.yaml"), ["model.start_from=run", "predict.crops=5", "predict.crop_share=0.5"]
    )
    assert (made.train.precision, made.model.unfreeze_epochs, made.model.init_from) == ("plain", 2, "run")
    assert made.predict.crop_fraction == 0.5
    assert load_recipe(str(tmp_path / "base.yaml")).train.precision == "bf16"
    with pytest.raises(UserError, match=r"unknown key 'train\.cpu_steps'"):
        load_recipe(str(tmp_path / "new.yaml"), ["train.cpu_steps=plain"])
    config = recipe_settings(made)
    config["train"]["cpu_step"] = config["train"].pop("precision")
    del config["augment"]["strength"], config["augment"]["ops"]  # keys that came later
    config["model"]["warm_head"] = False  # one that is gone, and changed nothing
    (tmp_path / "run.json").write_text(json.dumps({"run": "old", "config": config}))
    assert read_run_info(tmp_path).config == recipe_settings(made)
    config["model"]["warm_head"] = True  # its weights were made by what is no more
    (tmp_path / "run.json").write_text(json.dumps({"run": "old", "config": config}))
    with pytest.raises(UserError, match=r"unknown key 'model\.warm_head'"):
        recipe_from(read_run_info(tmp_path).config, [], "run.json")
