"""What recipes ask of the training loop does what its paper says, and leaves folds and rows in order."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import Workplace, make_tiny
from conftest import quick_recipe as recipe

from foldwise import UserError
from foldwise.data import folds, index, oof
from foldwise.data.competition import Competition
from foldwise.data.recipe import Augment, Train
from foldwise.data.runs import load_run
from foldwise.model.predict import activate
from foldwise.model.targets import Targets
from foldwise.train import fold_data, losses
from foldwise.train.mixup import mix
from foldwise.train.optim import make_schedule
from foldwise.train.trainer import Trainer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A tiny competition with a diagnosis beside the target, two cache sizes, and a trained run 'teacher'."""
    made = make_tiny(tmp_path_factory.mktemp("training"))
    table = pd.read_csv(made.raw / "train.csv")
    table["dx"] = np.where(table["sick"] == 1, np.where(np.arange(len(table)) % 2, "mel", "bcc"), "nevus")
    table.to_csv(made.raw / "train.csv", index=False)
    made.run("01_preprocess.py", "--sizes", 32, 48)
    made.run("02_train.py", "--recipe", "quick.yaml", "--name", "teacher", "train.precision=plain")
    return made


def train(about: Competition, folder: Path, *overrides: str, fold: int = 0) -> Trainer:
    """A fold trained in `folder`."""
    folder.mkdir(exist_ok=True)
    made = Trainer(about, recipe(about, *overrides), fold, folds.load_folds(about), folder)
    made.run()
    return made


# --- losses ---------------------------------------------------------------------------------------------------

CLASSES = Targets("multiclass", ["a", "b", "c"], ["a", "b", "c"], "softmax")
BINARY = Targets("binary", [], [], "sigmoid")


def settings(**values: object) -> Train:
    return Train(**values)  # type: ignore[arg-type]


@pytest.mark.smoke
def test_plain_losses_are_torch_s() -> None:
    logits, hard = torch.randn(8, 3), torch.randint(0, 3, (8,))
    soft = F.one_hot(hard, 3).float()
    assert losses.make_loss(settings(), CLASSES)(logits, soft).item() == pytest.approx(
        F.cross_entropy(logits, hard).item()
    )
    weight = torch.tensor([1.0, 2.0, 3.0])
    expected = (F.cross_entropy(logits, hard, reduction="none") * weight[hard]).mean()
    assert losses.make_loss(settings(), CLASSES, weight)(logits, soft).item() == pytest.approx(expected.item())
    y = (torch.arange(8) % 2).float()[:, None]
    expected = F.binary_cross_entropy_with_logits(logits[:, :1], y)
    assert losses.make_loss(settings(), BINARY)(logits[:, :1], y).item() == pytest.approx(expected.item())


@pytest.mark.smoke
def test_a_margin_is_arcface_s() -> None:
    """Deng 2019, equation 3: s cos(theta + m) at the true class, s cos(theta) elsewhere."""
    cosine, hard = torch.rand(64, 5, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9, torch.arange(64) % 5
    soft, scale, margin = F.one_hot(hard, 5).float(), 30.0, 0.5
    theta = cosine.acos()
    further = (theta + margin * soft).cos()
    turned = (theta + margin > np.pi) & (soft == 1)
    logits = scale * torch.where(turned, cosine - margin * np.sin(margin), further)
    loss = losses.with_margin(losses.make_loss(settings(), CLASSES), margin, scale)
    leaf = (scale * cosine).requires_grad_()
    value = loss(leaf, soft)
    assert value.item() == pytest.approx(F.cross_entropy(logits, hard).item(), rel=1e-4)
    value.backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()


@pytest.mark.smoke
def test_focal_loss_is_that_of_its_paper() -> None:
    """Lin 2017: -(1 - p_t)^gamma log p_t."""
    logits, y = torch.randn(16, 1), (torch.arange(16) % 2).float()[:, None]
    p = logits.sigmoid()
    p_t = torch.where(y == 1, p, 1 - p)
    expected = (-((1 - p_t) ** 3) * p_t.log()).mean()
    found = losses.make_loss(settings(loss="focal", focal_gamma=3), BINARY)(logits, y)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    logits, hard = torch.randn(16, 3), torch.randint(0, 3, (16,))
    p_t = logits.softmax(1)[torch.arange(16), hard]
    found = losses.make_loss(settings(loss="focal", focal_gamma=2), CLASSES)(logits, F.one_hot(hard, 3).float())
    assert found.item() == pytest.approx((-((1 - p_t) ** 2) * p_t.log()).mean().item(), rel=1e-5)


def test_balanced_class_weights_make_every_class_count_the_same() -> None:
    target = np.array([0] * 6 + [1] * 3 + [2])
    weight = losses.class_weights(settings(class_weights="balanced"), CLASSES, target)
    assert weight is not None
    share = np.bincount(target) / 10
    np.testing.assert_allclose(weight.numpy() * share, 1 / 3, rtol=1e-6)
    root = losses.class_weights(settings(class_weights="sqrt"), CLASSES, target)
    assert root is not None and (root.numpy() * share).sum() == pytest.approx(1)
    two = losses.class_weights(settings(class_weights="balanced"), BINARY, np.array([0, 0, 0, 1.0]))
    assert two is not None and two[1, 0] / two[0, 0] == pytest.approx(3)
    with pytest.raises(UserError, match=r"train.class_weights: 2 weights for 3 classes"):
        losses.class_weights(settings(class_weights=[1, 2]), CLASSES, target)


def test_ordinal_targets_and_probabilities_fit_together() -> None:
    ordinal = Targets("multiclass", ["0", "1", "2"], ["0", "1", "2"], "ordinal")
    assert ordinal.outputs == 2
    soft = torch.eye(3)
    assert losses.above(soft).tolist() == [[0, 0], [1, 0], [1, 1]]
    sure = torch.tensor([[-9.0, -9], [9, -9], [9, 9]])
    torch.testing.assert_close(activate(sure, ordinal), soft, atol=1e-3, rtol=0)
    crossed = activate(torch.tensor([[-2.0, 3.0]]), ordinal)  # P(above 1) > P(above 0): never negative
    assert (crossed >= 0).all() and crossed.sum().item() == pytest.approx(1)


def test_an_asymmetric_loss_discounts_easy_negatives() -> None:
    loss = losses.make_loss(settings(loss="asymmetric"), Targets("multilabel", ["a", "b"], ["a", "b"], "sigmoid"))
    easy, hard = torch.tensor([[3.0, -4.0]]), torch.tensor([[3.0, 2.0]])
    y = torch.tensor([[1.0, 0.0]])
    assert loss(easy, y) < 0.06 < loss(hard, y)


def test_a_loss_that_does_not_fit_the_task_is_refused(about: Competition, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.loss=ce: does not go with task binary; choose from asymmetric, bce"):
        train(about, tmp_path, "train.loss=ce")


# --- schedules ------------------------------------------------------------------------------------------------


def rates(epochs: int = 10, steps: int = 20, **values: object) -> np.ndarray:
    made = make_schedule(settings(epochs=epochs, **values), steps)
    return np.array([made.factor(step) for step in range(epochs * steps)])


@pytest.mark.smoke
def test_schedules_rise_and_fall_as_named() -> None:
    cosine = rates(schedule="cosine", warmup=0.1, final_lr=0.0)
    assert cosine[0] == pytest.approx(0.01) and cosine.argmax() == 20 and cosine[20] == pytest.approx(1)
    assert (np.diff(cosine[20:]) < 0).all() and cosine[-1] < 1e-3
    assert cosine[110] == pytest.approx(0.5, abs=0.01)
    assert (rates(schedule="constant", warmup=0.0) == 1).all()
    step = rates(schedule="step", warmup=0.0)
    assert sorted(set(step.round(6))) == [0.01, 0.1, 1.0] and (np.diff(step) <= 0).all()
    one = rates(schedule="onecycle", warmup=0.3)
    assert one.argmax() == 60 and (np.diff(one[60:]) < 0).all() and one[-1] < 0.01
    made = make_schedule(settings(schedule="plateau", warmup=0.0), 20)
    assert [made.factor(5, drops) for drops in (0, 1)] == pytest.approx([1, 0.1])


def test_warm_restarts_begin_anew_and_end_with_an_epoch() -> None:
    made = make_schedule(settings(epochs=9, cycles=3, warmup=0.0, final_lr=0.0), 10)
    share = np.array([made.factor(step) for step in range(90)])
    assert np.flatnonzero(np.diff(share) > 0.5).tolist() == [29, 59]
    assert [epoch for epoch in range(9) if made.cycle_ends(epoch)] == [2, 5, 8]


# --- in training ----------------------------------------------------------------------------------------------


def test_mixup_and_cutmix_mix_images_targets_and_metadata_in_one_share() -> None:
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 8, 8, 3).contiguous() * 60
    target, metadata = torch.eye(4), torch.eye(4) * 10
    for kind in ("mixup", "cutmix"):
        rng = np.random.default_rng(3)
        mixed, soft, beside = mix(images, target, metadata, Augment(**{kind: 1.0}), rng)  # type: ignore[arg-type]
        assert beside is not None
        torch.testing.assert_close(beside, soft * 10)
        torch.testing.assert_close(soft.sum(1), torch.ones(4))
        mean = mixed.float().mean((1, 2, 3))
        torch.testing.assert_close(mean, soft @ (torch.arange(4.0) * 60), atol=1.0, rtol=0)
    same, _, _ = mix(images, target, None, Augment(mixup=0.0), np.random.default_rng(0))
    assert same is images


def test_every_way_of_training_learns_the_disc(about: Competition, tmp_path: Path) -> None:
    """Bright against dark discs, four epochs: each of these must come near a full score."""
    ways = {
        "ema": ["train.averaging=ema", "train.ema_decay=0.9"],
        "swa": ["train.averaging=swa", "train.swa_start=0.5"],
        "accumulated": ["train.accumulate=2", "train.batch_size=8"],
        "balanced": ["train.sampling=balanced", "train.class_weights=balanced", "train.loss=focal"],
        "onecycle": ["train.schedule=onecycle", "train.optimizer=lamb"],
        "mixed": ["augment.mixup=0.3", "augment.cutmix=0.2", "train.label_smoothing=0.1"],
        "resized": ["train.sizes=[32, 48]", "image_size=48"],
        "asymmetric": ["train.loss=asymmetric"],
        "fusion": ["model.metadata=true", "model.head.samples=5", "model.head.dropout=0.3"],
        "plateau": ["train.schedule=plateau", "train.patience=1"],
    }
    for name, overrides in ways.items():
        made = train(about, tmp_path / name, "train.epochs=4", *overrides)
        assert made.progress.best > 0.9, f"{name}: {made.progress.best}"


def test_the_average_predicts_not_the_raw_weights(about: Competition, tmp_path: Path) -> None:
    made = train(about, tmp_path, "train.averaging=ema", "train.ema_decay=0.95", "train.checkpoint=last")
    raw, kept = made.state.network.state_dict(), made.state.best_weights
    average = made.state.average.current.state_dict()
    assert all(torch.equal(kept[key], average[key]) for key in kept)
    fresh = Trainer(about, made.recipe, 0, folds.load_folds(about), tmp_path)
    assert any(not torch.equal(kept[key], fresh.state.network.state_dict()[key]) for key in kept)
    assert set(raw) == set(kept)


def test_snapshots_keep_their_own_tables_and_are_averaged(about: Competition, place: Workplace, tmp_path: Path) -> None:
    place.run(
        "02_train.py",
        "--recipe",
        "quick.yaml",
        "--name",
        "snaps",
        "--fold",
        0,
        "train.snapshots=true",
        "train.cycles=2",
        "train.epochs=4",
        "train.precision=plain",
    )
    folder = place.runs / "snaps"
    parts = [oof.read_table(folder / "snapshots" / f"fold0_{k}.csv").set_index("id")["pred"] for k in (1, 2)]
    whole = oof.read_table(folder / "fold0.csv").set_index("id")["pred"]
    np.testing.assert_allclose(whole, (parts[0] + parts[1]) / 2, atol=1e-6)
    assert not np.allclose(parts[0], parts[1], atol=1e-3)
    before = (folder / "fold0_test.csv").read_bytes()
    place.run("05_predict.py", "--run", "snaps")
    np.testing.assert_allclose(
        pd.read_csv(folder / "fold0_test.csv")["pred"], pd.read_csv(pd.io.common.BytesIO(before))["pred"], atol=1e-6
    )


def test_early_stopping_stops_and_says_so(
    about: Competition, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = train(
        about, tmp_path, "train.epochs=30", "train.early_stopping=2", "train.schedule=constant", "train.lr=1e-5"
    )
    assert made.progress.epoch < 30 and made.progress.epochs_without_improvement == 2
    assert "stops early, 2 epochs without gain" in capsys.readouterr().err


def test_layers_learn_at_their_own_rates(about: Competition, tmp_path: Path) -> None:
    made = Trainer(
        about, recipe(about, "train.layer_decay=0.5", "train.warmup=0.0"), 0, folds.load_folds(about), tmp_path
    )
    made.stepper.set_lr(0)
    found = sorted({round(group["lr"] / made.recipe.train.lr, 6) for group in made.state.optimizer.param_groups})
    assert len(found) >= 3 and found[-1] == 1 and all(b / a == pytest.approx(2) for a, b in pairwise(found))
    made.stepper.set_lr(0)  # setting it twice does not compound
    assert found == sorted(
        {round(group["lr"] / made.recipe.train.lr, 6) for group in made.state.optimizer.param_groups}
    )


def test_balanced_sampling_draws_rare_classes_as_often(about: Competition, tmp_path: Path) -> None:
    made = Trainer(about, recipe(about, "train.sampling=balanced"), 0, folds.load_folds(about), tmp_path)
    drawn = np.concatenate([made.loader._order(epoch) for epoch in range(50)])
    assert made.data.train_target[drawn].mean() == pytest.approx(0.5, abs=0.03)
    assert made.data.train_target.mean() == pytest.approx(1 / 3, abs=0.05)


# --- other targets, other teachers ----------------------------------------------------------------------------


def test_an_auxiliary_target_is_learnt_and_folded_back(about: Competition, tmp_path: Path) -> None:
    options = ("target.column=dx", "target.positive=[mel, bcc]", "train.epochs=4")
    made = train(about, tmp_path, *options)
    assert made.data.targets.learnt == ["bcc", "mel", "nevus"]
    table = oof.read_table(tmp_path / "fold0.csv")
    assert list(table) == ["id", "fold", "target", "pred"] and made.progress.best > 0.9
    three = activate(made.state.network(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)), made.data.targets)
    assert three.shape == (2, 1) and ((three > 0) & (three < 1)).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["target.column=dxx", "target.positive=[mel]"], r"target.column=dxx: not in .*train.csv; did you mean 'dx'"),
        (["target.column=dx"], r"target.positive: name the classes of dx that count as 1: bcc, mel, nevus"),
        (["target.column=dx", "target.positive=[mal]"], r"target.positive: dx has no class 'mal'; did you mean 'mel'"),
        (["target.column=dx", "target.positive=[mel]", "train.distill=teacher"], r"target.column=null"),
        (["target.column=dx", "target.positive=[mel]", "target.map={mel: a}"], r"target.map.mel=a has no effect"),
        (["target.column=dx", "target.positive=[mel]", "train.loss=mse"], r"does not go with task multiclass"),
        (["train.class_weights=[0, 0]"], r"not 0 for all"),
        (["train.distill=teachr"], r"teachr.*did you mean 'teacher'|teachr: trained on other folds"),
        (["train.optimizer=adamv"], r"train.optimizer=adamv: timm has none such"),
        (["train.sizes=[20, 32]"], r"images_20.npy: not there yet \(made so far: 32, 48"),
        (["model.metadata=true", "train.pseudo=nothere.csv"], r"nothere.csv: no such file"),
    ],
)
def test_what_can_t_be_trained_is_one_clear_line(
    about: Competition, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(about, tmp_path, *overrides)


def test_distillation_mixes_labels_with_out_of_fold_predictions(about: Competition, tmp_path: Path) -> None:
    made = Trainer(
        about, recipe(about, "train.distill=teacher", "train.distill_weight=0.25"), 0, folds.load_folds(about), tmp_path
    )
    rows = torch.arange(len(made.data.train))
    said = load_run(about, "teacher").oof.set_index("id")["pred"].reindex(made.data.train["id"]).to_numpy()
    expected = 0.75 * made.data.train_target + 0.25 * said
    np.testing.assert_allclose(made.stepper.soft_target(rows)[:, 0], expected, atol=1e-6)


def test_pseudo_labels_come_from_the_same_fold_s_model(about: Competition, tmp_path: Path) -> None:
    """Fold 1's labels of the test rows are those of the teacher's fold-1 model, which never saw fold 1's rows."""
    made = recipe(about, "train.pseudo=teacher", "train.pseudo_keep=0.5")
    data = fold_data.gather(about, made, 1, folds.load_folds(about))
    joined = data.train["split"].to_numpy() == "test"
    readable = 11
    assert joined.sum() == round(0.5 * readable) and data.teacher_target is not None and data.teacher_weight is not None
    said = oof.read_table(about.runs() / "teacher" / "fold1_test.csv").set_index("id")["pred"]
    np.testing.assert_allclose(data.teacher_target[joined, 0], said[data.train["id"][joined]], atol=1e-6)
    assert (data.teacher_weight[joined] == 1).all() and (data.teacher_weight[~joined] == 0).all()
    sure = (said - 0.5).abs()
    left = set(data.test["id"]) - set(data.train["id"][joined]) - {"te0003"}
    assert sure[data.train["id"][joined]].min() >= sure[sorted(left)].max()
    assert set(data.valid["id"]).isdisjoint(data.train["id"])
    assert "te0003" not in set(data.train["id"]), "an unreadable image teaches nothing"
    train(about, tmp_path, "train.pseudo=teacher", "train.pseudo_hard=true", fold=1)


def test_pseudo_labels_of_a_submission_are_said_to_be_optimistic(
    about: Competition, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = index.load_index(about)
    ids = table.loc[table["split"] == "test", "id"]
    pd.DataFrame({"image_id": ids, "sick": np.linspace(0, 1, len(ids))}).to_csv(tmp_path / "sub.csv", index=False)
    data = fold_data.gather(about, recipe(about, f"train.pseudo={tmp_path / 'sub.csv'}"), 0, folds.load_folds(about))
    assert (data.train["split"] == "test").sum() == 6
    assert "the OOF score is optimistic" in capsys.readouterr().err


def test_fusion_is_encoded_by_training_rows_alone_and_predicts_again(place: Workplace) -> None:
    place.run(
        "02_train.py",
        "--recipe",
        "quick.yaml",
        "--name",
        "fused",
        "--fold",
        0,
        "model.metadata=true",
        "train.precision=plain",
    )
    first = (place.runs / "fused" / "fold0.csv").read_bytes()
    assert (place.runs / "fused" / "fold0_metadata.json").exists()
    place.run("05_predict.py", "--run", "fused", "--name", "again")
    assert (place.runs / "again" / "fold0.csv").read_bytes() == first


def test_tensorboard_holds_the_epochs(about: Competition, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(about, tmp_path, "train.tensorboard=true")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard" / "fold0"))
    events.Reload()
    log = pd.read_csv(tmp_path / "fold0_log.csv")
    found = [event.value for event in events.Scalars("train_loss")]
    assert found == pytest.approx(log["train_loss"].tolist(), rel=1e-4) and len(found) == 2
    assert not math.isnan(found[0])


def test_half_precision_that_overflows_is_computed_again_in_full(about: Competition, tmp_path: Path) -> None:
    made = Trainer(about, recipe(about, "train.precision=bf16"), 0, folds.load_folds(about), tmp_path)
    made.start()
    forward, calls = made.state.network.forward, []

    def overflowing(images: torch.Tensor, metadata: torch.Tensor | None = None) -> torch.Tensor:
        half = torch.is_autocast_enabled("cpu")
        calls.append(half)
        return forward(images, metadata) * (float("inf") if half else 1.0)

    made.state.network.forward = overflowing  # type: ignore[method-assign, assignment]
    assert np.isfinite(made._predict("valid")).all()
    assert calls == [True, False]
