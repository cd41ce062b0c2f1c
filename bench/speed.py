"""Five folds from raw JPEGs to out-of-fold predictions: ours beside timm's training script and beside fastai.

    python bench/speed.py [--seeds 0 1 2] [--size 128] [--epochs 3] [--timm-script train.py] [--fastai DIR] [--csv FILE]
    python bench/speed.py --to-score --competition hymenoptera --epochs 5 ...     # each side in its own way

The same JPEGs (skin1500), folds, MobileNetV2 with the same ImageNet weights, input size, batch of 32, epochs, AdamW,
peak learning rate, cosine, flips; the last epoch predicts. The sides take turns within each seed, in another order
for each. What a user waits for is counted: every process from its start, imports, image caches, the probe of
train.precision=auto (once a machine: in the first seed), validation, predictions. Ours also looks for duplicates,
writes its reports and predicts the test rows. Score: the competition's metric of all rows.

--to-score: how long until what the others reach is reached, each in its own way from the same weights: timm's script
as above, fastai's vision_learner with its own head and fine_tune (its defaults, flips, one epoch frozen), ours a
logistic regression a fold on the frozen network's embeddings (steps 01 and 04), at the size that QUICK says.

timm's train.py is not in its package: take the file from https://github.com/huggingface/pytorch-image-models at the
tag of the installed version. fastai goes into a folder of its own:
    pip install --target DIR --no-deps fastai fastcore fasttransform fastprogress==1.0.3 fastdownload plum-dispatch \
        cloudpickle beartype rich
A side that is not there is left out, and said so.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src"
sys.path.insert(0, str(SOURCE))

MODEL, LR, BATCH, WORKERS, DECAY, DROP = "mobilenetv2_100", 1e-3, 32, 2, 0.01, 0.2


# what launch.settle() sets, from outside
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass(frozen=True)
class Task:
    """rows: id, fold, target (0 or 1), path of the JPEG."""

    rows: pd.DataFrame
    name: str
    metric: str
    competition: Path
    weights: Path
    room: Path
    size: int
    epochs: int
    seed: int
    gpu: bool
    folds: list[int]

    def network(self) -> object:
        """The pretrained network with a head of two classes."""
        import timm

        return timm.create_model(
            MODEL,
            pretrained=True,
            num_classes=2,
            drop_rate=DROP,
            pad_type="same",
            pretrained_cfg_overlay={"file": str(self.weights), "num_classes": 1000},
        )


def call(command: list[object], task: Task, **env: str) -> None:
    """Run a command to its end; its words go to room/log.txt, and the last of them are shown where it fails."""
    log = task.room / "log.txt"
    with log.open("a") as out:
        done = subprocess.run(
            [str(part) for part in command],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=task.room,
            check=False,
            env={**os.environ, "XDG_CACHE_HOME": str(task.room.parent / "cache"), "HF_HUB_OFFLINE": "1", **env},
        )
    if done.returncode:
        raise SystemExit(f"{command[1]} failed:\n{log.read_text()[-3000:]}")


# --- ours -----------------------------------------------------------------------------------------------------


def preprocess(task: Task) -> None:
    call(
        [sys.executable, SOURCE / "01_preprocess.py", "--competition", task.competition, "--sizes", task.size],
        task,
        FOLDWISE_ROOT=str(task.room),
    )


def ours(task: Task) -> pd.DataFrame:
    """Steps 01 and 02 in a fresh root, as the others train; on a CPU as many folds at once as there are cores."""
    from foldwise.core import parallel

    preprocess(task)
    fold = "all" if len(task.folds) > 1 else str(task.folds[0])
    n_parallel = [] if task.gpu or len(task.folds) == 1 else ["--devices", parallel.cores()]
    knobs = {
        "image_size": task.size,
        "seed": task.seed,
        "augment.preset": "none",
        "augment.flips": "d4",
        "train.epochs": task.epochs,
        "train.lr": LR,
        "train.batch_size": BATCH,
        "train.weight_decay": DECAY,
        "train.checkpoint": "last",
    }
    step(task, "02_train.py", "--fold", fold, *n_parallel, *(f"{key}={value}" for key, value in knobs.items()))
    return predictions(task, "mobilenetv2")


def head_on_embeddings(task: Task) -> pd.DataFrame:
    """Steps 01 and 04: the frozen network's features once, a head a fold; all folds, for it makes no other."""
    task = replace(task, size=QUICK[task.name])
    preprocess(task)
    step(task, "04_embed.py", "--head", "logreg", f"image_size={task.size}", f"seed={task.seed}")
    return predictions(task, "mobilenetv2_logreg")


def step(task: Task, script: str, *asked: object) -> None:
    recipe = ["--competition", task.competition, "--recipe", "mobilenetv2"]
    call([sys.executable, SOURCE / script, *recipe, *asked], task, FOLDWISE_ROOT=str(task.room))


def predictions(task: Task, run: str) -> pd.DataFrame:
    """id and pred (of the second of two classes) of the folds."""
    folder = task.room / "oof" / task.name / run
    pred = pd.concat([pd.read_csv(folder / f"fold{k}.csv", dtype={"id": str}) for k in task.folds])
    return pred.set_axis([*pred.columns[:-1], "pred"], axis=1)[["id", "pred"]]


# --- timm's training script -----------------------------------------------------------------------------------


def timm_script(task: Task, script: Path, env: dict[str, str]) -> pd.DataFrame:
    """A folder of links and a process for each fold; then one that predicts the validation rows."""
    for k in task.folds:
        for row in task.rows.itertuples():
            part = "validation" if row.fold == k else "train"
            link = task.room / f"fold{k}" / part / str(row.target) / f"{row.Index}.jpg"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(row.path)
        overlay = f"{{'file':'{task.weights}','num_classes':1000}}"
        call(
            [
                sys.executable,
                script,
                "--data-dir",
                task.room / f"fold{k}",
                "--model",
                MODEL,
                "--num-classes",
                2,
                "--pretrained",
                "--model-kwargs",
                "pad_type=same",
                f"pretrained_cfg_overlay={overlay}",
                "--input-size",
                3,
                task.size,
                task.size,
                "--mean",
                0.5,
                0.5,
                0.5,
                "--std",
                0.5,
                0.5,
                0.5,
                "--crop-pct",
                1,
                "--epochs",
                task.epochs,
                "--batch-size",
                BATCH,
                "--workers",
                WORKERS,
                "--drop",
                DROP,
                "--opt",
                "adamw",
                "--lr",
                LR,
                "--weight-decay",
                DECAY,
                "--sched",
                "cosine",
                "--sched-on-updates",
                "--warmup-epochs",
                0,
                "--smoothing",
                0,
                "--scale",
                1,
                1,
                "--ratio",
                1,
                1,
                "--hflip",
                0.5,
                "--vflip",
                0.5,
                "--color-jitter",
                0,
                "--seed",
                task.seed,
                "--output",
                task.room,
                "--experiment",
                f"run{k}",
                *(["--amp", "--channels-last", "--pin-mem"] if task.gpu else ["--device", "cpu"]),
            ],
            task,
            **env,
        )
    return in_a_process("timm", task, **env)


def timm_predict(task: Task) -> pd.DataFrame:
    """Validation rows of each fold by the last checkpoint of its run."""
    import torch
    from timm.data import create_dataset, create_loader

    device = torch.device("cuda" if task.gpu else "cpu")
    parts = []
    for k in task.folds:
        network = task.network().to(device).eval()  # type: ignore[attr-defined]
        saved = torch.load(task.room / f"run{k}" / "last.pth.tar", map_location="cpu", weights_only=False)
        network.load_state_dict(saved["state_dict"])
        data = create_dataset("", root=str(task.room / f"fold{k}"), split="validation")
        loader = create_loader(
            data,
            (3, task.size, task.size),
            64,
            num_workers=WORKERS,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            crop_pct=1.0,
            interpolation="bicubic",
            device=device,
            pin_memory=task.gpu,
        )
        with torch.inference_mode():
            pred = torch.cat([network(images).float().softmax(1)[:, 1].cpu() for images, _ in loader])
        ids = task.rows["id"].to_numpy()[[int(Path(name).stem) for name in data.filenames(basename=True)]]
        parts.append(pd.DataFrame({"id": ids, "pred": pred.numpy()}))
    return pd.concat(parts)


# --- fastai ---------------------------------------------------------------------------------------------------


def fastai_learners(task: Task, tuned: bool = False) -> pd.DataFrame:
    """A Learner a fold, in one process as in a notebook; `tuned`: vision_learner and fine_tune."""
    from fastai.vision import all as fv

    parts = []
    for k in task.folds:
        fv.set_seed(task.seed, reproducible=True)
        table = task.rows.assign(valid=task.rows["fold"] == k)
        flips = fv.aug_transforms(flip_vert=True, max_rotate=0, max_zoom=1, max_lighting=0, max_warp=0)
        loaders = fv.ImageDataLoaders.from_df(
            table,
            path="/",
            fn_col="path",
            label_col="target",
            valid_col="valid",
            bs=BATCH,
            item_tfms=fv.Resize(task.size),
            batch_tfms=[*flips, fv.Normalize.from_stats([0.5] * 3, [0.5] * 3)],
        )
        if tuned:
            overlay = {"file": str(task.weights), "num_classes": 1000}
            learner = fv.vision_learner(
                loaders, MODEL, normalize=False, pad_type="same", pretrained_cfg_overlay=overlay
            )
        else:
            learner = fv.Learner(loaders, task.network(), loss_func=fv.CrossEntropyLossFlat(), wd=DECAY)
        if task.gpu:
            learner.to_fp16()
        with learner.no_bar():
            if tuned:
                learner.fine_tune(task.epochs - 1)  # and one epoch of the head alone before
            else:
                learner.fit_one_cycle(task.epochs, LR)
            pred = learner.get_preds(ds_idx=1)[0][:, 1]
        parts.append(pd.DataFrame({"id": loaders.valid_ds.items["id"].to_numpy(), "pred": pred.numpy()}))
    return pd.concat(parts)


Side = Callable[[Task], pd.DataFrame]
IN_A_PROCESS: dict[str, Side] = {
    "timm": timm_predict,
    "fastai": fastai_learners,
    "fastai fine_tune": partial(fastai_learners, tuned=True),
}


def in_a_process(side: str, task: Task, **env: str) -> pd.DataFrame:
    """A function of this file in a process of its own."""
    paths = {name: str(getattr(task, name)) for name in PATHS}
    plain = {**vars(task), **paths, "rows": task.rows.to_dict("list")}
    (task.room / "task.json").write_text(json.dumps(plain))
    call([sys.executable, __file__, "--side", side, "--task", task.room / "task.json"], task, **env)
    return pd.read_csv(task.room / "pred.csv")


PATHS = ("competition", "weights", "room")


def read_task(path: Path) -> Task:
    plain = json.loads(path.read_text())
    return Task(**{**plain, **{name: Path(plain[name]) for name in PATHS}, "rows": pd.DataFrame(plain["rows"])})


# --- the table ------------------------------------------------------------------------------------------------


def measure(name: str, side: Side, task: Task) -> dict[str, object]:
    """Wall seconds, CPU seconds of all its processes, and the score of all rows of the folds."""
    from foldwise import metrics

    task.room.mkdir()
    before, started = cpu_seconds(), time.perf_counter()
    pred = side(task)
    wall, cpu = time.perf_counter() - started, cpu_seconds() - before
    rows = task.rows[task.rows["fold"].isin(task.folds)]
    joined = rows.set_index("id").join(pred.set_index("id"), how="left", validate="one_to_one")
    assert joined["pred"].notna().all() and len(pred) == len(rows), f"{name}: a row was dropped or doubled"
    values = joined["pred"].to_numpy() if task.metric == "roc_auc" else joined["pred"].to_numpy() > 0.5
    score = round(metrics.score(task.metric, joined["target"].to_numpy(), values.astype(float)), 4)
    row = {"seed": task.seed, "side": name, "wall_s": round(wall, 1), "cpu_s": round(cpu, 1), "score": score}
    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return row


def cpu_seconds() -> float:
    """Of all processes that ours started and that have ended, whatever else the machine does; Linux."""
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: a server's forks are ours when it is gone
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def summary(table: pd.DataFrame) -> str:
    """A Markdown table: mean and standard deviation over seeds, ratios within a seed."""
    wall = table.pivot(index="seed", columns="side", values="wall_s")
    lines = [
        "| | wall s | sd | CPU s | wall, relative to ours (each seed) | OOF score | sd |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, part in table.groupby("side", sort=False):
        ratios = (wall[side] / wall["foldwise"]).round(2).tolist()
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(
            f"| {side} | {part['wall_s'].mean():.1f} | {part['wall_s'].std():.1f} | {part['cpu_s'].mean():.0f} | "
            f"{np.mean(ratios):.2f} ({each}) | {part['score'].mean():.4f} | {part['score'].std():.4f} |"
        )
    return "\n".join(lines)


def prepare(room: Path, weights: Path, options: argparse.Namespace) -> Task:
    """Our folds for all sides; not counted."""
    from foldwise.core import parallel
    from foldwise.data.competition import load_competition

    about = load_competition(options.competition)
    raw, file = about.raw(), SOURCE / "competitions" / f"{about.name}.yaml"
    if options.rows:
        raw, file = shortened(raw, file, room, options.rows)
    (room / "folds").mkdir()
    task = Task(
        pd.DataFrame(),
        about.name,
        about.metric,
        file,
        weights,
        room / "folds",
        64,
        options.epochs,
        0,
        parallel.gpus() > 0,
        [],
    )
    preprocess(task)
    derived = room / "folds" / "input" / "derived" / about.name
    table = pd.read_parquet(derived / "index.parquet").query("split == 'train'")
    rows = pd.read_csv(derived / "folds.csv", dtype={"id": str})[["id", "fold"]].merge(table, on="id")
    rows = rows[["id", "fold", "target", "path"]].assign(path=[str(raw / path) for path in rows["path"]])
    rows["target"] = np.unique(rows["target"], return_inverse=True)[1]
    folds = options.folds or sorted(rows["fold"].unique().tolist())
    return replace(task, rows=rows, room=room, size=options.size, folds=folds)


def shortened(raw: Path, file: Path, room: Path, count: int) -> tuple[Path, Path]:
    """The competition's first rows: (raw folder, YAML)."""
    short = room / "raw"
    short.mkdir()
    for name, rows in (("train.csv", count), ("test.csv", count // 3), ("sample_submission.csv", count // 3)):
        pd.read_csv(raw / name).head(rows).to_csv(short / name, index=False)
    for name in ("train", "test"):
        (short / name).symlink_to(raw / name)
    about = yaml.safe_load(file.read_text()) | {"root": str(short)}
    (room / "skin1500.yaml").write_text(yaml.safe_dump(about))
    return short, room / "skin1500.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=128, help="input size in pixels (default: 128)")
    parser.add_argument("--epochs", type=int, default=3, help="default: 3")
    parser.add_argument("--timm-script", type=Path, default=Path("/tmp/timm_script/train.py"), help="timm's train.py")
    parser.add_argument("--fastai", type=Path, default=Path("/tmp/fastai"), help="the folder that fastai is in")
    parser.add_argument("--malloc", action="store_true", help="also the others with our allocator settings")
    parser.add_argument("--csv", type=Path, help="write each measurement here")
    parser.add_argument("--folds", type=int, nargs="+", help="default: all five")
    parser.add_argument("--rows", type=int, help="the first rows alone: to see whether every side works")
    parser.add_argument("--competition", choices=QUICK, default="skin1500", help="default: skin1500")
    parser.add_argument("--to-score", action="store_true", help="each side in its own way: time to the same score")
    parser.add_argument("--side", choices=IN_A_PROCESS, help=argparse.SUPPRESS)
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        task = read_task(options.task)
        IN_A_PROCESS[options.side](task).to_csv(task.room / "pred.csv", index=False)
        return
    run(options)


QUICK = {"skin1500": 224, "hymenoptera": 128}  # pixels of ours with --to-score: a pass forward is all it needs


def others(options: argparse.Namespace, env: dict[str, str], suffix: str) -> dict[str, Side]:
    """The other sides that are there, with these environment variables."""
    found: dict[str, Side] = {}
    if options.timm_script.exists():
        found["timm train.py" + suffix] = lambda task: timm_script(task, options.timm_script.resolve(), env)
    if (options.fastai / "fastai").exists():
        path, how = str(options.fastai.resolve()), "fastai fine_tune" if options.to_score else "fastai"
        found["fastai" + suffix] = lambda task: in_a_process(how, task, PYTHONPATH=path, **env)
    for name in ("timm train.py" + suffix, "fastai" + suffix):
        if name not in found:
            print(f"{name} is not there: left out (see --help)")
    return found


def run(options: argparse.Namespace) -> None:
    from foldwise import UserError
    from foldwise.core import parallel
    from foldwise.data.competition import load_competition

    weights = (REPOSITORY.parent / "shared/weights/mobilenetv2_100.safetensors").resolve()
    try:
        load_competition(options.competition).raw()
    except UserError as problem:
        print(f"skipped: {problem}")
        return
    mine = head_on_embeddings if options.to_score else ours
    sides: dict[str, Side] = {"foldwise": mine, **others(options, {}, "")}
    if options.malloc:
        sides |= others(options, MALLOC, ", our malloc")
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        base = prepare(Path(folder), weights, options)
        for number, seed in enumerate(options.seeds):
            names = list(sides)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                room = Path(folder) / f"{len(rows)}"
                rows.append(measure(name, sides[name], replace(base, seed=seed, room=room)))
                if options.csv:
                    pd.DataFrame(rows).to_csv(options.csv, index=False)
    table = pd.concat([pd.DataFrame(rows).query("side == @name") for name in sides])
    print(
        f"\n{base.name}, {MODEL} at {options.size}, batch {BATCH}, {options.epochs} epochs, "
        f"{'GPU' if base.gpu else 'CPU'}, {parallel.cores()} cores"
    )
    print(summary(table))


if __name__ == "__main__":
    main()
