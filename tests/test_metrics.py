"""Every metric against its scikit-learn twin on random input with ties, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from foldwise import UserError, blend, metrics, stats
from foldwise.data.competition import Competition, load_competition
from foldwise.metrics import Undefined, auc_of, greater_is_better, rehearse, resampler, resolve, score

quick = settings(max_examples=60, deadline=None)


def draw_rows(seed: int, n: int, levels: int, classes: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth and scores in 0..1 of `levels` distinct values, so that ties are common; no class is absent."""
    rng = np.random.default_rng(seed)
    if not classes:
        target = rng.integers(0, 2, n)
        target[:2] = 0, 1
        return target, rng.integers(0, levels, n) / max(1, levels - 1)
    target = rng.integers(0, classes, n)
    target[:classes] = np.arange(classes)
    pred = rng.integers(1, levels + 2, (n, classes)).astype(float)
    return target, pred / pred.sum(axis=1, keepdims=True)


rows = st.tuples(st.integers(0, 10**6), st.integers(8, 200), st.integers(1, 40))
BINARY = {
    "roc_auc": sk.roc_auc_score,
    "log_loss": lambda t, p: sk.log_loss(t, p, labels=[0, 1]),
    "accuracy": lambda t, p: sk.accuracy_score(t, p >= 0.5),
    "balanced_accuracy": lambda t, p: sk.balanced_accuracy_score(t, p >= 0.5),
    "f1": lambda t, p: sk.f1_score(t, p >= 0.5, zero_division=0),
    "f1_macro": lambda t, p: sk.f1_score(t, p >= 0.5, average="macro", zero_division=0),
    "f1_micro": lambda t, p: sk.f1_score(t, p >= 0.5, average="micro", zero_division=0),
    "average_precision": sk.average_precision_score,
    "quadratic_weighted_kappa": lambda t, p: sk.cohen_kappa_score(t, p >= 0.5, weights="quadratic"),
    "mcc": lambda t, p: sk.matthews_corrcoef(t, p >= 0.5),
    "error": lambda t, p: 1 - sk.accuracy_score(t, p >= 0.5),
    "pauc@0.8": lambda t, p: host_partial_auc(t, p, 0.8),
    "weighted_auc": lambda t, p: host_weighted_auc(t, p, [(0.4, 2), (1, 1)]),
}


def host_partial_auc(target, pred, least):
    """In a host's words: the flipped curve up to a false positive rate, scikit-learn's scaling taken back."""
    most = 1 - least
    scaled = sk.roc_auc_score(1 - target, -pred, max_fpr=most)
    return 0.5 * most**2 + (most - 0.5 * most**2) / 0.5 * (scaled - 0.5)


def host_weighted_auc(target, pred, bands):
    """Each step of the curve cut into the bands of true positive rates that it crosses, by the trapezoidal rule."""
    fpr, tpr, _ = sk.roc_curve(target, pred)
    total, low = 0.0, 0.0
    for high, weight in bands:
        for x, y, right, up in zip(fpr, tpr, np.diff(fpr), np.diff(tpr), strict=False):
            start, end = max(low, y), min(high, y + up)
            if end > start:
                total += weight * (end - start) * (1 - x - right * ((start + end) / 2 - y) / up)
        low = high
    return total / np.dot(np.diff([0, *(high for high, _ in bands)]), [weight for _, weight in bands])


@pytest.mark.smoke
@pytest.mark.parametrize("name", BINARY)
@given(rows)
@quick
def test_binary_twins(name, drawn):
    target, pred = draw_rows(*drawn)
    assert score(name, target, pred) == pytest.approx(BINARY[name](target, pred), abs=1e-9)


MULTICLASS = {
    "roc_auc": lambda t, p: sk.roc_auc_score(t, p, multi_class="ovr", average="macro"),
    "log_loss": sk.log_loss,
    "accuracy": lambda t, p: sk.accuracy_score(t, p.argmax(1)),
    "balanced_accuracy": lambda t, p: sk.balanced_accuracy_score(t, p.argmax(1)),
    "f1_macro": lambda t, p: sk.f1_score(t, p.argmax(1), average="macro", zero_division=0),
    "f1_micro": lambda t, p: sk.f1_score(t, p.argmax(1), average="micro", zero_division=0),
    "quadratic_weighted_kappa": lambda t, p: sk.cohen_kappa_score(t, p.argmax(1), weights="quadratic"),
    "average_precision": lambda t, p: np.mean([sk.average_precision_score(t == c, p[:, c]) for c in range(p.shape[1])]),
    "map@1": lambda t, p: sk.accuracy_score(t, p.argmax(1)),
    "mcc": lambda t, p: sk.matthews_corrcoef(t, p.argmax(1)),
    "top_k_error@1": lambda t, p: 1 - sk.accuracy_score(t, p.argmax(1)),
    "top_k_error@2": lambda t, p: np.mean(
        [c not in np.argsort(-r, kind="stable")[:2] for c, r in zip(t, p, strict=True)]
    ),
}


@pytest.mark.parametrize("name", MULTICLASS)
@given(rows, st.integers(3, 6))
@quick
def test_multiclass_twins(name, drawn, classes):
    target, pred = draw_rows(*drawn, classes)
    assert score(name, target, pred) == pytest.approx(MULTICLASS[name](target, pred), abs=1e-9)


@pytest.mark.parametrize("name", ["roc_auc", "average_precision", "f1", "balanced_accuracy", "pf1"])
@given(rows)
@quick
def test_multilabel_is_the_mean_of_columns(name, drawn):
    first, second = draw_rows(*drawn), draw_rows(drawn[0] + 1, *drawn[1:])
    target, pred = np.c_[first[0], second[0]], np.c_[first[1], second[1]]
    expected = (score(name, *first) + score(name, *second)) / 2
    assert score(name, target, pred) == pytest.approx(expected, abs=1e-12)


@given(rows)
@quick
def test_label_set_twins(drawn):
    rng = np.random.default_rng(drawn[0])
    target, pred = rng.integers(0, 2, (drawn[1], 4)), rng.integers(0, drawn[2], (drawn[1], 4)) / max(1, drawn[2] - 1)
    expected = sk.f1_score(target, pred >= 0.5, average="samples", zero_division=0)
    assert score("f1_samples", target, pred) == pytest.approx(expected)
    assert score("lrap", target, pred) == pytest.approx(sk.label_ranking_average_precision_score(target, pred))
    unknown = target.astype(float)
    unknown[:, 3] = np.nan
    for name in ("f1_samples", "lrap"):
        assert score(name, unknown, pred) == pytest.approx(score(name, target[:, :3], pred[:, :3]))


@given(rows)
@quick
def test_weighted_log_loss_is_the_hosts(drawn):
    rng = np.random.default_rng(drawn[0])
    target, pred = rng.integers(0, 2, (drawn[1], 3)), rng.random((drawn[1], 3))
    zero, one = np.array([7, 1, 1]), np.array([14, 2, 2])
    cells = -(target * np.log(pred) + (1 - target) * np.log(1 - pred))
    weights = target * one + (1 - target) * zero
    metric = resolve("weighted_log_loss", weights=np.c_[zero, one])
    assert score(metric, target, pred) == pytest.approx(np.mean((weights * cells).sum(1) / weights.sum(1)))
    metric = resolve("weighted_log_loss", weights=np.c_[zero, one], normalise="all")
    assert score(metric, target, pred) == pytest.approx((weights * cells).sum() / weights.sum())
    target, pred = draw_rows(*drawn, 3)
    expected = sk.log_loss(target, pred, sample_weight=one[target], labels=range(3))
    assert score(resolve("weighted_log_loss", weights=one), target, pred) == pytest.approx(expected)
    target, pred = target > 0, pred[:, 1]
    expected = sk.log_loss(target, pred, sample_weight=np.where(target, 2, 1), labels=[0, 1])
    assert score(resolve("weighted_log_loss", weights=[[1, 2]]), target, pred) == pytest.approx(expected)


def test_kl_divergence_and_laplace_are_the_hosts():
    rng = np.random.default_rng(0)
    votes = rng.integers(0, 4, (50, 3)) + np.eye(3)[rng.integers(0, 3, 50)]
    target, pred = votes / votes.sum(axis=1, keepdims=True), rng.dirichlet(np.ones(3), 50)
    by_hand = [
        sum(p * np.log(p / q) for p, q in zip(a, b, strict=True) if p) for a, b in zip(target, pred, strict=True)
    ]
    assert score("kl_divergence", target, pred) == pytest.approx(np.mean(by_hand))
    assert score("kl", target, target) == pytest.approx(0, abs=1e-12)
    assert score("kl", target, pred, weight=votes[:, 0] + 1) == pytest.approx(
        np.average(by_hand, weights=votes[:, 0] + 1)
    )
    with pytest.raises(UserError, match="shares that sum to one"):
        score("kl", votes, pred)
    truth, value, sigma = rng.normal(2000, 500, (3, 40))
    clipped, error = np.maximum(sigma, 70), np.minimum(np.abs(truth - value), 1000)
    by_hand = np.mean(-np.sqrt(2) * error / clipped - np.log(np.sqrt(2) * clipped))
    assert score("laplace", truth, np.c_[value, sigma]) == pytest.approx(by_hand)
    constants = [score("laplace", truth, np.c_[value, np.full(40, s)]) for s in np.linspace(70, 2000, 500)]
    assert score("laplace", truth, value) == pytest.approx(max(constants), abs=1e-4) and greater_is_better("laplace")
    assert score("laplace", truth, value) >= max(constants)


@pytest.mark.parametrize(
    ("name", "task", "options"),
    [
        ("pauc@0.8", "binary", {}),
        ("weighted_auc", "binary", {"bands": [(0.5, 1), (1, 3)]}),
        ("mcc", "multiclass", {}),
        ("top_k_error@2", "multiclass", {}),
        ("error", "multiclass", {}),
        ("lrap", "multilabel", {}),
        ("weighted_log_loss", "multiclass", {"weights": [1.0, 2, 3]}),
        ("weighted_log_loss", "multilabel", {"weights": [(7, 14), (1, 2), (1, 2)]}),
        ("laplace_log_likelihood", "regression", {}),
    ],
)
def test_new_metrics_weigh_rows_and_can_be_blended(name, task, options):
    rng = np.random.default_rng(1)
    metric = resolve(name, **options)
    target = rng.integers(0, 3 if task == "multiclass" else 2, (120, 3) if task == "multilabel" else 120)
    target = rng.normal(2000, 300, 120) if task == "regression" else target
    hot = np.eye(3)[target] if task == "multiclass" else target
    noise = rng.normal(0, 300 if task == "regression" else 0.6, (2, *hot.shape))
    preds = hot + noise if task == "regression" else 1 / (1 + np.exp(-3 * (hot + noise - 0.5)))
    if task == "multiclass":
        preds /= preds.sum(axis=2, keepdims=True)
    counts = rng.integers(0, 3, 120)
    repeated = score(metric, np.repeat(target, counts, axis=0), np.repeat(preds[0], counts, axis=0))
    assert score(metric, target, preds[0], counts) == pytest.approx(repeated)
    assert resampler(metric, target, preds[0])(counts.astype(float)) == pytest.approx(repeated)
    mixed = blend.fit_weights(preds, target, metric, "auto", task=task, draws=50)
    sign = 1 if metric.greater_is_better else -1
    singles = [score(metric, target, run) for run in preds]
    assert sign * mixed.nested_score > sign * np.mean(singles) and mixed.interval[0] < mixed.interval[1]


def test_options_of_a_metric_stand_in_the_competition_file(tmp_path):
    about = described(tmp_path, {"function": "weighted_log_loss", "weights": {"0": 1, "1": 3}}, "")
    assert score(about.scorer(), [0, 1], [0.5, 0.25]) == pytest.approx((np.log(2) + 3 * np.log(4)) / 4)
    about = described(tmp_path, {"function": "weighted_auc", "bands": [[0.5, 1], [1, 0]]}, "")
    assert score(about.scorer(), [0, 1, 1, 0], [0.1, 0.9, 0.4, 0.5]) == 1
    for metric, words in (
        ({"function": "auc", "bands": [[1, 1]]}, "takes no options such as 'bands'"),
        ({"function": "weighted_auc", "sigma": 3}, "no option 'sigma'"),
        ({"function": "weighted_auc", "bands": [[0.5, 1], [0.4, 2]]}, "ascending to 1"),
        ({"function": "weighted_log_loss"}, "needs weights"),
        ({"function": "weighted_log_loss", "weights": {"0": 1, "2": 3}}, "'1' is missing"),
        ({"function": "weighted_log_loss", "weights": {"0": 1, "1": [3, 2]}}, "a number a class"),
        ("pauc@1.5", "between 0 and 1"),
        ("top_k_error@0", "from 1 on"),
    ):
        with pytest.raises(UserError, match=words):
            described(tmp_path, metric, "")


def test_every_metric_is_listed():
    names = {line.split()[0] for line in metrics.listing().splitlines()}
    assert names >= {*metrics.METRICS, "map@K", "pauc@TPR", "top_k_error@K", "weighted_log_loss"}


@given(rows)
@quick
def test_regression_twins(drawn):
    rng = np.random.default_rng(drawn[0])
    target, pred = rng.normal(size=(2, drawn[1]))
    assert score("rmse", target, pred) == pytest.approx(sk.root_mean_squared_error(target, pred))
    assert score("mae", target, pred) == pytest.approx(sk.mean_absolute_error(target, pred))


def plain_map(target: np.ndarray, pred: np.ndarray, k: int) -> float:
    total = 0.0
    for truth, row in zip(target, pred, strict=True):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]
        total += next((1 / rank for rank, c in enumerate(order, 1) if c == truth), 0.0)
    return total / len(target)


@given(rows, st.integers(3, 6), st.integers(1, 7))
@quick
def test_map_at_k(drawn, classes, k):
    target, pred = draw_rows(*drawn, classes)
    assert score(f"map@{k}", target, pred) == pytest.approx(plain_map(target, pred, k))
    one_hot = np.eye(classes)[target]
    assert score(f"map@{k}", one_hot, pred) == pytest.approx(plain_map(target, pred, k))


def host_pf1(labels, predictions):
    """The host's code of rsna-breast-cancer-detection, in its own words."""
    ctp = cfp = y_true_count = 0.0
    for label, value in zip(labels, predictions, strict=True):
        prediction = min(max(value, 0), 1)
        if label:
            y_true_count += 1
            ctp += prediction
        else:
            cfp += prediction
    if ctp + cfp == 0:
        return 0.0
    precision, recall = ctp / (ctp + cfp), ctp / y_true_count
    return 2 * precision * recall / (precision + recall) if precision > 0 and recall > 0 else 0.0


@given(rows)
@quick
def test_pf1_is_the_hosts(drawn):
    target, pred = draw_rows(*drawn)
    assert score("pf1", target, pred * 1.4 - 0.2) == pytest.approx(host_pf1(target, pred * 1.4 - 0.2))


@given(rows)
@quick
def test_kappa_of_grades(drawn):
    target, _ = draw_rows(*drawn, 5)
    pred = np.random.default_rng(drawn[0]).normal(target, 1.0)
    grades = np.clip(np.floor(pred + 0.5), 0, 4)
    expected = sk.cohen_kappa_score(target, grades, weights="quadratic")
    assert score("qwk", target, pred) == pytest.approx(expected)
    assert score("qwk", target.astype(float) + 1, pred + 1) == pytest.approx(expected)


@pytest.mark.parametrize("name", [*BINARY, "pf1"])
@given(rows)
@quick
def test_weights_repeat_rows(name, drawn):
    target, pred = draw_rows(*drawn)
    counts = np.random.default_rng(drawn[0]).integers(0, 4, len(target))
    counts[:2] += 1
    expected = score(name, np.repeat(target, counts), np.repeat(pred, counts))
    assert score(name, target, pred, weight=counts) == pytest.approx(expected, abs=1e-9)
    again = resampler(resolve(name), target, pred)
    assert again(counts.astype(float)) == pytest.approx(expected, abs=1e-9)


@given(rows, st.sampled_from([0.02, 0.3, 0.5, 0.97]), st.sampled_from([np.float32, np.float64]))
@quick
def test_auc_paths_agree(drawn, share, dtype):
    rng = np.random.default_rng(drawn[0])
    target = rng.random(drawn[1]) < share
    target[:2] = False, True
    pred = (rng.integers(0, drawn[2], drawn[1]) / 7).astype(dtype)
    expected = sk.roc_auc_score(target, pred)
    assert auc_of(pred[~target], pred[target]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.smoke
def test_containers_and_directions():
    target, pred = [0, 1, 1, 0], [0.1, 0.9, 0.4, 0.4]
    assert score("auc", target, pred) == 0.875
    assert score("auc", pd.Series(target), pd.DataFrame({"p": pred})) == 0.875
    assert score("auc", pd.Series(target, dtype="Int64"), pd.Series(pred, dtype="Float64")) == 0.875
    assert score("auc", np.array(target, bool), np.array(pred, np.float16)) == 0.875
    assert greater_is_better("auc") and not greater_is_better("logloss") and not greater_is_better("rmse")


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("name", "target", "pred", "words"),
    [
        ("roc_acu", [0, 1], [0.1, 0.2], "roc_auc"),
        ("auc", [0, 1], [0.1, np.nan], "row 1"),
        ("auc", [0, 1], [0.1, np.inf], "infinite"),
        ("auc", [0, 1], ["a", "b"], "numbers"),
        ("auc", [0, 1], ["a", None], "number"),
        ("auc", [0, 1], [0.1, 0.2, 0.3], "do not fit"),
        ("auc", [], [], "no rows"),
        ("auc", [1, 1], [0.1, 0.2], "one class only"),
        ("auc", [[0, 1], [0, 0]], [[0.1, 0.2], [0.1, 0.2]], "column 0"),
        ("auc", [0, 2], [0.1, 0.2], "expected 0 to 1"),
        ("auc", [0, 3], [[0.1, 0.9], [0.3, 0.7]], "expected 0 to 1"),
        ("auc", [0, 0.5], [0.1, 0.2], "class indices"),
        ("log_loss", [0, 1], [0.1, 1.2], "probabilities"),
        ("ap", [0, 0], [0.1, 0.2], "one class only"),
        ("pf1", [0, 0], [0.1, 0.2], "one class only"),
        ("qwk", [2, 2], [2.0, 2.0], "one class only"),
        ("f1", [0, 1, 2], np.ones((3, 3)), "binary"),
        ("map@3", [0, 1], [0.1, 0.9], "multiclass"),
        ("rmse", [0, 1], np.ones((2, 3)), "do not fit"),
        ("no_such_module:f", [0, 1], [0, 1], "no_such_module"),
        ("math:no_such", [0, 1], [0, 1], "no_such"),
    ],
)
def test_refused_in_one_line(name, target, pred, words):
    with pytest.raises(UserError) as caught:
        score(name, target, pred)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def described(folder: Path, metric: object, source: str, file: str = "mine.py") -> Competition:
    """A competition file in `folder` with a metric file beside it."""
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(source)
    about = {"name": "x", "task": "binary", "metric": metric, "train": {"table": "t.csv", "images": "{id}.png"}}
    (folder / "c.yaml").write_text(yaml.safe_dump(about))
    return load_competition(str(folder / "c.yaml"))


WORST = "def worst(target, pred):\n    return abs(target - pred).max()\n"


def test_own_metric_is_found_beside_the_competition_and_from_here(tmp_path, monkeypatch):
    about = described(tmp_path / "a", "mine:worst", WORST + "worst.greater_is_better = False\n")
    other = described(tmp_path / "b", "mine:worst", WORST.replace(".max()", ".min()") + "worst.greater_is_better = 1\n")
    for one, expected, up in ((about, 0.5, False), (other, 0.25, True), (about, 0.5, False)):
        assert score(one.scorer(), [0.0, 1.0], [0.25, 0.5]) == expected
        assert one.scorer().greater_is_better == up and one.scorer().name == one.metric == "mine:worst"
    monkeypatch.chdir(tmp_path / "a")
    assert score("mine:worst", [0.0, 1.0], [0.25, 0.5]) == 0.5
    assert score(f"{tmp_path / 'b' / 'mine.py'}:worst", [0.0, 1.0], [0.25, 0.5]) == 0.25


def test_own_metric_declares_its_direction(tmp_path):
    for metric, up in (
        ({"function": "mine:worst", "greater_is_better": False}, False),
        ({"function": "mine:worst", "greater_is_better": True}, True),
        ("sklearn.metrics:brier_score_loss", False),
        ("sklearn.metrics:matthews_corrcoef", None),
        ("mine:worst", None),
    ):
        about = described(tmp_path, metric, WORST)
        if up is not None:
            assert about.scorer().greater_is_better is up
        else:
            with pytest.raises(UserError, match="greater_is_better: false"):
                about.scorer()
    ranks = {"function": "mine:worst", "greater_is_better": True, "order_only": True}
    assert described(tmp_path, ranks, WORST).scorer().order_only
    for metric, words in (
        ({"function": "auc", "greater_is_better": True}, "needs no declaring"),
        ({"function": "mine:worst", "greater_is_beter": True}, "did you mean 'metric.greater_is_better'"),
    ):
        with pytest.raises(UserError, match=words):
            described(tmp_path, metric, WORST)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def worst(target):\n    return 1.0\n", "takes 1 positional argument but 2 were given"),
        ("def worst(target, pred):\n    return 1 / 0\n", r"ZeroDivisionError: division by zero \(.*mine.py, line 2\)"),
        ("def worst(target, pred):\n    return None\n", "TypeError"),
        ("def worst(target, pred):\n    return float('nan')\n", "gives back nan"),
        ("import nosuchmodule\n", "can't be imported .*nosuchmodule"),
    ],
)
def test_own_metric_that_does_not_score_is_found_out_by_a_dry_call(tmp_path, source, words):
    about = described(tmp_path, {"function": "mine:worst", "greater_is_better": False}, source)
    with pytest.raises(UserError, match=words):
        rehearse(about.scorer(), np.array([0, 1, 1, 0], np.float32), 0, "binary")


def test_own_metric_is_undefined_where_it_raises(tmp_path):
    source = "from sklearn.metrics import roc_auc_score\ndef half(t, p):\n    assert len(set(t)) > 1, 'one class'\n"
    source += "    return roc_auc_score(t, p)\n"
    metric = described(tmp_path, {"function": "mine:half", "greater_is_better": True}, source).scorer()
    rehearse(metric, np.array([0, 1, 1, 0], np.float32), 0, "binary")
    with pytest.raises(Undefined, match="AssertionError: one class"):
        score(metric, [1, 1], [0.1, 0.2])
    target, pred = np.array([1.0] + [0.0] * 9), np.linspace(0, 1, 10)
    draws = stats.bootstrap(metric, target, [pred], draws=100)[:, 0]
    assert 10 < np.isnan(draws).sum() < 60
    gained = stats.gain(np.column_stack([draws + 1, draws]), 1, 0, True)
    assert gained["share_above_zero"] == 1 and gained["low"] == pytest.approx(1)


@pytest.mark.smoke
def test_kappa_is_plain_and_the_quadratic_one_has_its_name():
    target, pred = np.array([0, 1, 2, 2, 1, 0]), np.array([0, 2, 2, 1, 1, 1])
    assert score("kappa", target, pred) == score("cohen_kappa", target, pred)
    assert score("kappa", target, pred) == pytest.approx(sk.cohen_kappa_score(target, pred))
    quadratic = sk.cohen_kappa_score(target, pred, weights="quadratic")
    assert score("qwk", target, pred) == pytest.approx(quadratic) and quadratic != score("kappa", target, pred)


@pytest.mark.smoke
def test_weights_of_zero_are_refused():
    with pytest.raises(UserError, match="not 0 for all"):
        score("auc", [0, 1], [0.1, 0.2], weight=[0, 0])
