"""The worked example of docs/crop.md: a made-up watch competition, and the figures of what came of it.

    python docs/crop_example.py make      input/watches/: photos, train.csv, test.csv, boxes.csv, competition.yaml
    python docs/crop_example.py figures   docs/crop_*, after the commands of docs/crop.md

A watch lies somewhere in each photo, among other round and straight things. Its kind is in a detail of the dial: plain,
date (a small window) or chrono (three small dials). Boxes are known for 60 of the training photos, as if drawn by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from foldwise.data.competition import output_root
from foldwise.report import figures

KINDS = ("plain", "date", "chrono")
WIDTH, HEIGHT = 480, 360
TRAIN, TEST, BOXES = 240, 150, 60
HERE = Path(__file__).resolve().parent
RUNS = {"whole": figures.BLUE, "crop": figures.VERMILLION}
SEEDS = (0, 1, 2)


def clutter(rng: np.random.Generator) -> np.ndarray:
    """A table top with boxes, plates, coins and pens on it."""
    canvas = np.full((HEIGHT, WIDTH, 3), rng.integers(60, 200, 3), np.float32)
    grain = cv2.resize(rng.normal(0, 1, (12, 16, 3)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    canvas = np.clip(canvas + 18 * grain, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(10, 18)):
        at = rng.integers((0, 0), (WIDTH, HEIGHT)).tolist()
        colour = rng.integers(20, 235, 3).tolist()
        kind = rng.integers(3)
        if kind == 0:
            shape = cv2.boxPoints((at, rng.integers(20, 120, 2).tolist(), float(rng.integers(180))))
            cv2.fillPoly(canvas, [shape.astype(int)], colour, cv2.LINE_AA)
        elif kind == 1:
            radius = int(rng.integers(10, 60))
            cv2.circle(canvas, at, radius, colour, -1, cv2.LINE_AA)
            cv2.circle(canvas, at, max(2, int(0.7 * radius)), [c // 2 + 60 for c in colour], 2, cv2.LINE_AA)
        else:
            cv2.line(
                canvas, at, rng.integers((0, 0), (WIDTH, HEIGHT)).tolist(), colour, int(rng.integers(2, 9)), cv2.LINE_AA
            )
    return canvas


def draw_watch(canvas: np.ndarray, kind: str, rng: np.random.Generator) -> list[int]:
    """A wrist watch on the canvas; its box xmin, ymin, xmax, ymax."""
    radius = int(rng.integers(26, 52))
    reach = int(2.1 * radius)
    x, y = rng.integers(reach, WIDTH - reach), rng.integers(reach, HEIGHT - reach)
    angle = rng.uniform(-0.6, 0.6)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def place(right: float, down: float) -> list[int]:
        return (np.array([x, y]) + radius * turn @ [right, down]).round().astype(int).tolist()

    dark = rng.integers(15, 90, 3).tolist()
    dial = rng.integers(150, 250, 3).tolist()
    strap = np.array([place(-0.5, -2), place(0.5, -2), place(0.5, 2), place(-0.5, 2)])
    cv2.fillPoly(canvas, [strap], dark, cv2.LINE_AA)
    cv2.circle(canvas, place(0, 0), radius, [c // 2 for c in dial], -1, cv2.LINE_AA)
    cv2.circle(canvas, place(0, 0), int(0.88 * radius), dial, -1, cv2.LINE_AA)
    for hour in range(12):
        at = np.array([np.sin(np.pi * hour / 6), -np.cos(np.pi * hour / 6)])
        cv2.line(canvas, place(*(0.72 * at)), place(*(0.82 * at)), dark, 2, cv2.LINE_AA)
    if kind == "date":
        window = np.array([place(0.3, -0.14), place(0.62, -0.14), place(0.62, 0.14), place(0.3, 0.14)])
        cv2.fillPoly(canvas, [window], (255, 255, 255), cv2.LINE_AA)
        cv2.polylines(canvas, [window], True, dark, 1, cv2.LINE_AA)
    if kind == "chrono":
        for right, down in ((-0.4, 0.05), (0.4, 0.05), (0, 0.42)):
            cv2.circle(canvas, place(right, down), max(3, int(0.2 * radius)), [c // 2 for c in dial], -1, cv2.LINE_AA)
    for length, wide in ((0.45, 3), (0.68, 2)):
        way = rng.uniform(0, 2 * np.pi)
        cv2.line(canvas, place(0, 0), place(length * np.sin(way), -length * np.cos(way)), dark, wide, cv2.LINE_AA)
    corners = np.concatenate([strap, np.array([x, y]) + radius * np.array([[-1, -1], [1, 1]])])
    low, high = corners.min(axis=0), corners.max(axis=0)
    return [max(0, int(low[0])), max(0, int(low[1])), min(WIDTH, int(high[0]) + 1), min(HEIGHT, int(high[1]) + 1)]


def make() -> None:
    """Write input/watches."""
    rng = np.random.default_rng(0)
    root = output_root() / "input" / "watches"
    boxes = []
    for split, count in (("train", TRAIN), ("test", TEST)):
        (root / split).mkdir(parents=True, exist_ok=True)
        names = [f"{split}{k:03d}" for k in range(count)]
        kinds = [KINDS[k % 3] for k in range(count)]
        for name, kind in zip(names, kinds, strict=True):
            photo = clutter(rng)
            box = draw_watch(photo, kind, rng)
            photo = np.clip(photo + rng.normal(0, 5, photo.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(str(root / split / f"{name}.jpg"), photo, [cv2.IMWRITE_JPEG_QUALITY, 92])
            boxes.append([name, *box])
        table = pd.DataFrame({"image_id": names, "kind": kinds})
        table.to_csv(root / ("train.csv" if split == "train" else "solution.csv"), index=False)
        if split == "test":
            table[["image_id"]].to_csv(root / "test.csv", index=False)
    columns = ["image_id", "xmin", "ymin", "xmax", "ymax"]
    pd.DataFrame(boxes[:BOXES], columns=columns).to_csv(root / "boxes.csv", index=False)
    competition = {
        "name": "watches",
        "task": "multiclass",
        "metric": "f1_macro",
        "id": "image_id",
        "target": "kind",
        "train": {"table": "train.csv", "images": "train/{image_id}.jpg"},
        "test": {"table": "test.csv", "images": "test/{image_id}.jpg"},
        "folds": {"n": 3, "seed": 0},
    }
    (root / "competition.yaml").write_text(yaml.safe_dump(competition, sort_keys=False))
    print(f"{TRAIN} training and {TEST} test photos, {BOXES} boxes: {root}")


def f1_macro(run: str) -> tuple[float, float]:
    """(out of fold, test) macro F1 of a run; the test truth is used only here."""
    from sklearn.metrics import f1_score

    columns = [f"pred_{kind}" for kind in sorted(KINDS)]

    def score(table: pd.DataFrame, truth: pd.Series) -> float:
        guess = np.array(sorted(KINDS))[table[columns].to_numpy().argmax(axis=1)]
        return float(f1_score(truth, guess, average="macro"))

    folder = output_root() / "oof" / "watches" / run
    oof, test = pd.read_csv(folder / "oof.csv"), pd.read_csv(folder / "test.csv")
    truth = pd.read_csv(output_root() / "input" / "watches" / "solution.csv").set_index("image_id")["kind"]
    return score(oof, oof["target"]), score(test, test["id"].map(truth))


def make_figures() -> None:
    """docs/crop_f1.png, docs/crop_margin.png, docs/crop_sheet.jpg, and the table on the terminal."""
    runs = output_root() / "oof" / "watches"
    done = [seed for seed in SEEDS if all((runs / f"{kind}{seed}" / "test.csv").exists() for kind in RUNS)]
    for kind in RUNS:
        scores = np.array([f1_macro(f"{kind}{seed}") for seed in done])
        each = ", ".join(f"{score:.3f}" for score in scores[:, 1])
        print(
            f"{kind:6} OOF {scores[:, 0].mean():.3f} (sd {scores[:, 0].std(ddof=1):.3f}), test "
            f"{scores[:, 1].mean():.3f} (sd {scores[:, 1].std(ddof=1):.3f}; {each})"
        )
    curves = {
        kind: [pd.read_csv(log) for seed in done for log in sorted((runs / f"{kind}{seed}").glob("fold?_log.csv"))]
        for kind in RUNS
    }
    save(f1_by_epoch(curves), "crop_f1")
    derived = output_root() / "input" / "derived" / "watches"
    facts = json.loads((derived / "crop.json").read_text())
    met = facts["recall"]
    save(figures.crop_margins(pd.DataFrame(met["margins"]), facts["margin"], met["images"]), "crop_margin")
    sheet = cv2.imread(str(derived / "crops.png"))
    cv2.imwrite(str(HERE / "crop_sheet.jpg"), sheet[: 2 * (180 + 44)], [cv2.IMWRITE_JPEG_QUALITY, 88])


@figures.styled
def f1_by_epoch(curves: dict[str, list[pd.DataFrame]]) -> figures.Figure:
    """A thin line a fold and seed, a thick one their mean."""
    figure, (axes,) = figures.panels(1, 3.4, width=7.2)
    for kind, logs in curves.items():
        for log in logs:
            axes.plot(log["epoch"], log["f1_macro"], color=RUNS[kind], linewidth=0.7, alpha=0.4)
        mean = pd.concat(logs).groupby("epoch")["f1_macro"].mean()
        label = {"whole": "whole photos", "crop": "crops"}[kind]
        axes.plot(mean.index, mean, "o-", color=RUNS[kind], linewidth=2.2, markersize=4, label=label)
    axes.set(xlabel="epoch", ylabel="macro F1 on the fold held out", ylim=(0, 1.02))
    axes.set_title(f"a thin line a fold and seed ({len(curves['crop'])} each), and their mean")
    axes.axhline(1 / 3, color=figures.INK, linewidth=1, linestyle=":", label="chance")
    axes.legend(loc="lower right")
    return figure


def save(figure: figures.Figure, name: str) -> None:
    """docs/<name>.png on white."""
    figure.set_facecolor("white")
    figure.savefig(HERE / f"{name}.png", dpi=110, facecolor="white")


if __name__ == "__main__":
    if sys.argv[1:] not in (["make"], ["figures"]):
        sys.exit(__doc__)
    make() if sys.argv[1] == "make" else make_figures()
