"""Tables and charts of the pages: Okabe and Ito's colours, told apart by colour-blind readers, on either theme."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import altair as alt
import cv2
import numpy as np
import pandas as pd

from foldwise.data.image import as_picture

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"  # Okabe and Ito 2008
SKY = "#56B4E9"


@dataclass(frozen=True)
class Said:
    """Predictions of one image: means[source] (outputs,) of runs and blends, folds[run][name] (outputs,)."""

    outputs: list[str]
    means: dict[str, np.ndarray]
    folds: dict[str, dict[str, np.ndarray]]
    task: str

    def best(self, top: int) -> list[int]:
        """Outputs of the largest mean prediction, largest first."""
        return np.argsort(-np.mean(list(self.means.values()), axis=0), kind="stable")[:top].tolist()


def sentence(said: Said) -> str:
    """The first source's answer in words: 'target = 1: 42 %, folds 30 to 66 %'."""
    name, mean = next(iter(said.means.items()))
    k = int(mean.argmax())
    values = [float(pred[k]) for pred in said.folds.get(name, {}).values()]
    unit, scale = ("", 1) if said.task == "regression" else (" %", 100)

    def shown(value: float) -> str:
        return f"{scale * value:.4g}" if scale == 1 else f"{scale * value:.0f}"

    spread = f", folds {shown(min(values))} to {shown(max(values))}{unit}" if len(values) > 1 else ""
    return f"{said.outputs[k]}: {shown(float(mean[k]))}{unit}{spread}"


def probabilities(said: Said, top: int) -> alt.LayerChart:
    """A bar of each source's mean and a tick of each fold's model, by class where there are several."""
    several = len(said.outputs) > 1
    label = (
        "predicted value"
        if said.task == "regression"
        else "probability"
        if several
        else f"probability of {said.outputs[0]}"
    )
    rows = [(source, said.outputs[k], float(pred[k])) for source, pred in said.means.items() for k in said.best(top)]
    ticks = [
        (run, said.outputs[k], fold, float(pred[k]))
        for run, by_fold in said.folds.items()
        for fold, pred in by_fold.items()
        for k in said.best(top)
    ]
    means = pd.DataFrame(rows, columns=["source", "class", "value"])
    means["what"] = np.where(means["source"].isin(list(said.folds)), "mean of folds", "blend")
    folds = pd.DataFrame(ticks, columns=["source", "class", "fold", "value"]).assign(what="one fold's model")
    scale = alt.Scale() if said.task == "regression" else alt.Scale(domain=[0, 1])
    x = alt.X("value:Q", title=label, scale=scale)
    order = [said.outputs[k] for k in said.best(top)] if several else list(said.means)
    y = alt.Y("class:N" if several else "source:N", sort=order, title=None, axis=alt.Axis(labelLimit=220))
    what = alt.Scale(domain=["mean of folds", "blend", "one fold's model"], range=[SKY, GREEN, VERMILLION])
    colour = alt.Color("what:N", scale=what, title=None, legend=alt.Legend(orient="bottom"))
    offset = {"yOffset": alt.YOffset("source:N", sort=list(said.means))} if several and len(said.means) > 1 else {}
    bar = alt.Chart(means).mark_bar().encode(x=x, y=y, color=colour, tooltip=["source", "class", "value"], **offset)
    tick = (
        alt.Chart(folds)
        .mark_tick(thickness=3, size=18)
        .encode(x=x, y=y, color=colour, tooltip=["source", "class", "fold", "value"], **offset)
    )
    lines = len(said.best(top)) * len(said.means) if several else len(said.means)
    return alt.layer(bar, tick).properties(height=120 + 34 * lines)


def numbers(said: Said, top: int) -> pd.DataFrame:
    """A row per source and class: the mean, and each fold's model."""
    rows = []
    for source, mean in said.means.items():
        for k in said.best(top):
            row = {"who": source} | ({"class": said.outputs[k]} if len(said.outputs) > 1 else {})
            row |= {"mean or blend": f"{mean[k]:.4f}"}
            rows.append(row | {fold: f"{pred[k]:.4f}" for fold, pred in said.folds.get(source, {}).items()})
    return pd.DataFrame(rows).fillna("")


def enlarged(image: np.ndarray, side: int = 448) -> np.ndarray:
    """uint8 (S, S, 3) at least `side` pixels large, smooth."""
    side = max(side, len(image))
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)


def forest(table: pd.DataFrame, metric: str) -> alt.LayerChart:
    """Each run's out-of-fold score with its 95 % interval, and each fold's as a dot."""
    order = table["run"].tolist()
    y = alt.Y("run:N", sort=order, title=None, axis=alt.Axis(labelLimit=260))
    bar = (
        alt.Chart(table)
        .mark_rule(strokeWidth=4, color=SKY)
        .encode(
            x=alt.X("low:Q", title=metric, scale=alt.Scale(zero=False)),
            x2="high:Q",
            y=y,
            tooltip=["run", "low", "high"],
        )
    )
    point = (
        alt.Chart(table)
        .mark_point(filled=True, size=110, color=BLUE)
        .encode(x="score:Q", y=y, tooltip=["run", "score"])
    )
    folds = [name for name in table if name.startswith("fold") and name[4:].isdigit()]
    long = table.melt("run", folds, "fold", "value").dropna()
    dots = (
        alt.Chart(long)
        .mark_point(shape="diamond", size=45, color=VERMILLION)
        .encode(x="value:Q", y=y, tooltip=["run", "fold", "value"])
    )
    return alt.layer(bar, dots, point).properties(height=80 + 34 * len(order))


def thumbnail(image: np.ndarray, side: int = 96) -> str:
    """uint8 (H, W, C) as the data URL of a small JPEG."""
    small = cv2.resize(as_picture(image), (side, side), interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", np.ascontiguousarray(small[..., ::-1]))[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def weights(table: pd.DataFrame) -> alt.Chart:
    """Weights by run; of several blends side by side where column `whose` tells them apart."""
    both = {"yOffset": "whose:N", "color": _whose(table)} if "whose" in table else {"color": alt.value(BLUE)}
    return (
        alt.Chart(table)
        .mark_bar()
        .encode(
            x=alt.X("weight:Q", title="weight in the blend"),
            tooltip=["run", "weight"],
            y=alt.Y("run:N", sort="-x", title=None, axis=alt.Axis(labelLimit=260)),
            **both,
        )
        .properties(height=80 + 28 * len(table))
    )


def _whose(table: pd.DataFrame) -> alt.Color:
    scale = alt.Scale(domain=table["whose"].unique().tolist(), range=[BLUE, ORANGE])
    return alt.Color("whose:N", scale=scale, title=None, legend=alt.Legend(orient="bottom"))
