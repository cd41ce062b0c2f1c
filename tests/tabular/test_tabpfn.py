"""TabPFN as a learner, by weights drawn at random: called, saved and explained rightly; not how good it is."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Workplace, make_tiny
from scipy.special import logit

from foldwise import UserError
from foldwise.core.saved import read_saved, write_saved
from foldwise.data.competition import Task
from foldwise.tabular import boosting, learners

pytest.importorskip("tabpfn", reason="needs tabpfn: pip install tabpfn")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two files of weights, one a kind."""
    import torch
    from tabpfn.architectures import ARCHITECTURES
    from tabpfn.architectures.tabpfn_v2 import TabPFNV2Config
    from tabpfn.checkpoint import save_as_safetensors

    folder = tmp_path_factory.mktemp("weights")
    for kind, classes, buckets in (("classifier", 4, -1), ("regressor", 0, 20)):
        config = TabPFNV2Config(emsize=32, nlayers=1, nhead=2, max_num_classes=classes, num_buckets=buckets)
        network = ARCHITECTURES["tabpfn_v2"].get_architecture(config)
        draw = torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=draw)
        state = network.state_dict()
        if kind == "regressor":
            state |= {"criterion.borders": torch.linspace(-4, 4, 21), "criterion.losses_per_bucket": torch.zeros(20)}
        save_as_safetensors({"state_dict": state, "config": asdict(config)}, folder / f"tabpfn-v2-{kind}.safetensors")
    return folder


@pytest.fixture
def at_hand(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same where weights are looked for."""
    monkeypatch.setenv("FOLDWISE_ROOT", str(tmp_path))
    return Path(shutil.copytree(drawn, tmp_path / "input" / "weights"))


def table() -> np.ndarray:
    """(60, 4): a number, a number with gaps, a category, nothing."""
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(size=(60, 2)), rng.integers(0, 3, 60), np.full(60, np.nan)])
    x[::7, 1] = np.nan
    return x


def fitted(task: Task, y: np.ndarray, outputs: int, **changes: object) -> learners.Fitted:
    learner = learners.get("tabpfn")
    settings = {**learners.settings_of(learner, {}, task), "n_estimators": 2, "random_state": 3}
    data = replace(learners.Data(table(), y, (2,)), **changes)  # type: ignore[arg-type]
    return learners.fit(learner, settings, task, outputs, data, None, 1)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_what_features_add_sums_to_the_prediction_and_the_file_predicts_the_same(
    task: Task, at_hand: Path, tmp_path: Path
) -> None:
    x = table()
    y = {"binary": x[:, 0] > 0, "multiclass": np.digitize(x[:, 0], [-0.5, 0.5]), "regression": 7 + x[:, 0]}[task]
    model = fitted(task, y.astype(float), 3 if task == "multiclass" else 1)
    pred = model.predict(x)
    assert pred.shape == (60, 3 if task == "multiclass" else 1) and len(np.unique(pred)) > 50
    meant = {"binary": logit, "multiclass": np.log, "regression": np.asarray}[task](pred)
    assert model.contributions(x).sum(axis=2) == pytest.approx(meant, abs=1e-9)
    assert (model.importance()[:3] > 0).all() and model.importance()[3] == 0
    write_saved(tmp_path / "model.npz", model)
    assert (read_saved(tmp_path / "model.npz", learners.FITTED, "").predict(x) == pred).all()
    (at_hand / f"tabpfn-v2-{'regressor' if task == 'regression' else 'classifier'}.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="not the weights that this model was fitted with"):
        read_saved(tmp_path / "model.npz", learners.FITTED, "").predict(x)


def test_what_it_can_not_do_is_said(at_hand: Path) -> None:
    with pytest.raises(UserError, match=r"--model tabpfn refuses: .*classes"):
        fitted("multiclass", np.arange(60) % 12, 12)
    with pytest.raises(UserError, match="--oof: tabpfn can't"):
        fitted("binary", np.arange(60) % 2, 1, rising=[0])
    with pytest.raises(UserError, match=r"n_estimator: unknown|refuses: .*n_estimator"):
        learners.settings_of(learners.get("tabpfn"), {"n_estimator": 3}, "binary")
    with pytest.raises(UserError, match="--tune: tabpfn has no settings"):
        boosting.load_optuna(learners.get("tabpfn"))
    shutil.rmtree(at_hand)
    with pytest.raises(UserError, match=r"no weights.* --params weights=FILE"):
        learners.settings_of(learners.get("tabpfn"), {}, "binary")


def test_a_run_is_made_blended_and_carried_to_a_machine_without_a_network(drawn: Path, tmp_path: Path) -> None:
    place: Workplace = make_tiny(tmp_path, test_rows=12)
    place.describe(metadata={"numeric": ["age"], "categorical": ["site"]})
    place.run("01_preprocess.py", "--sizes", 32)
    shutil.copytree(drawn, elsewhere := tmp_path / "elsewhere")
    file = elsewhere / "tabpfn-v2-classifier.safetensors"
    place.run("03_metadata.py", "--model", "tabpfn", "--params", f"weights={file}", "n_estimators=1")
    place.run("06_blend.py", "--runs", "tabpfn", "--name", "one")
    out = tmp_path / "bundle"
    made = place.run("11_bundle.py", "--submission", "one", "--out", out, "--owner", "some-body", "--no-gpu")
    assert "tabpfn" in made.stdout + made.stderr  # a wheel that it lacks
    assert (out / "dataset" / "root" / "input" / "weights" / file.name).read_bytes() == file.read_bytes()
    shutil.rmtree(elsewhere)
    shutil.copytree(drawn, place.root / "input" / "weights")  # as in the bundle: found by its name
    place.run("05_predict.py", "--submission", "one")
