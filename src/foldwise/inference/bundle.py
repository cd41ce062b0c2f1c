"""Everything that a code competition's notebook needs, in one folder: a dataset to upload, and the notebook itself.

<out>/dataset/    code/ (what inference imports), root/ (index, folds, runs' models, the blend), wheels/,
                  dataset-metadata.json
<out>/kernel/     submit.ipynb, kernel-metadata.json
<out>/submit.py   the notebook as a script
<out>/bundle.json what it was made of, and a hash of each file
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from foldwise import UserError, __version__
from foldwise.core import parallel, paths
from foldwise.core.cli import duration, note
from foldwise.core.files import file_digest, temporary_folder, write_json, write_text
from foldwise.core.schema import validate
from foldwise.data import arrays, index, oof
from foldwise.data.boxes import load_crop_meta
from foldwise.data.competition import Competition
from foldwise.data.recipe import Recipe
from foldwise.inference.budget import Choice
from foldwise.inference.members import Member, members_of
from foldwise.inference.pixels import BATCH, Looks, Pace, Pixels
from foldwise.inference.writer import Saved
from foldwise.tabular import learners

Rule = tuple[str, bool, str]  # name, whether it holds, what is wrong
EDITED = ("dataset/dataset-metadata.json", "kernel/kernel-metadata.json")  # that a user may be asked to mend
WHOLE = ("dataset/code/", "dataset/root/")  # where nothing may be added
WORKING, DATASET = 20e9, 100e9  # bytes that Kaggle gives the working folder, and a dataset at most
ENTRIES = ("foldwise.inference.writer", "foldwise.inference.predict")
TABPFN = ("tabpfn", "skrub", "pydantic-settings", "einops")
DECODERS = ("python-gdcm", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pyjpegls", "dicomsdl")
KERNEL = {
    "language": "python",
    "kernel_type": "notebook",
    "is_private": True,
    "enable_tpu": False,
    "enable_internet": False,
    "kernel_sources": [],
    "model_sources": [],
    "keywords": [],
    "docker_image_pinning_type": "original",
}


class About(BaseModel):
    """What bundle.json must hold, and more."""

    model_config = ConfigDict(extra="allow")

    competition: str
    slug: str
    submission: str
    dataset: str = Field(pattern="^[^/]+/[^/]+$")
    hours: float
    fp16: dict[str, Any]
    runs: dict[str, list[int]] = Field(min_length=1)
    missing_wheels: list[str]
    files: dict[str, str]


@dataclass(frozen=True)
class Wish:
    """How the bundle is to be: who owns it, its title, whether it gets a GPU, weights in half precision, wheels."""

    owner: str
    title: str
    hours: float = 9.0
    gpu: bool = True
    fp16: bool = False
    wheels: Path | None = None

    @property
    def slug(self) -> str:
        """As the host makes it of the title."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def make_bundle(competition: Competition, name: str, out: Path, wish: Wish) -> dict[str, Any]:
    """The bundle of a submission, in a new folder; back comes bundle.json. UserError where a model is not there."""
    saved, table = Saved.load(competition, name), index.load_index(competition)
    if out.exists() and any(out.iterdir()) and not (out / "bundle.json").exists():
        raise UserError(f"{out}: holds other files; choose an empty folder")
    members = members_of(competition, saved.mixture.needed)
    whole, out = out, out.with_name(f"{out.name}.part")
    shutil.rmtree(out, ignore_errors=True)
    dataset, root = out / "dataset", out / "dataset" / "root"
    changes = half_precision(competition, members, table) if wish.fp16 else {}
    _copy_code(competition, dataset / "code" / "src")
    _copy_table(competition, table, root)
    for member in members.values():
        _copy_member(competition, member, root, wish.fp16)
    target = root / "submissions" / competition.name / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(competition.submissions() / f"{name}.json", target)
    lacking = _wheels(table, members.values(), wish.wheels, dataset)
    slug = competition.slug or competition.name
    _write_kernel(out, competition.name, slug, name, wish)
    about = {
        "foldwise": __version__,
        "competition": competition.name,
        "slug": slug,
        "submission": name,
        "dataset": f"{wish.owner}/{wish.slug}",
        "hours": wish.hours,
        "gpu": wish.gpu,
        "fp16": changes,
        "runs": {member.name: member.folds for member in members.values()},
        "missing_wheels": lacking,
        "seconds_per_1000": pace(competition, members, table, saved.mixture.needed),
        "bytes": sum(file.stat().st_size for file in dataset.rglob("*") if file.is_file()),
        "files": digests(out),
    }
    write_json(out / "bundle.json", about)
    shutil.rmtree(whole, ignore_errors=True)
    out.rename(whole)
    return about


def pace(competition: Competition, members: Mapping[str, Member], table: pd.DataFrame, runs: list[str]) -> float | None:
    """Seconds for 1,000 images, measured on a few here; None where the raw images are not at hand."""
    rows = table[(table["split"] != "extra") & table["error"].isna()].head(2 * BATCH)
    choice = Choice.everything(members, runs, {})
    try:
        raw = competition.raw()
    except UserError:
        return None
    if not choice.sources or not len(rows):
        return None
    with temporary_folder(paths.output_root(), "pace.") as folder:
        grid = [slice(0, len(rows) // 2), slice(len(rows) // 2, len(rows))]
        pixels = Pixels(competition, rows, raw, folder, Looks(competition, table), grid)
        for piece, _ in pixels.run(lambda: choice.sources, grid):
            if not piece.start and len(rows) == 2 * BATCH:
                pixels.pace = Pace()  # the first batch warms up
        return 1000 * choice.seconds(pixels.pace, parallel.gpus() > 0)


# --- code -------------------------------------------------------------------------------------------------


def needed_modules(entries: Iterable[str] = ENTRIES) -> dict[str, Path]:
    """The package's modules that `entries` import, at the top or later, and their files."""
    needed: dict[str, Path] = {}
    todo = list(entries)
    while todo:
        name = todo.pop()
        path = paths.SOURCE.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in needed or not file.exists():
            continue
        needed[name] = file
        todo.append(name.rpartition(".")[0] or name)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names if alias.name.startswith("foldwise")]
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("foldwise"):
                todo += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return needed


def _copy_code(competition: Competition, source: Path) -> None:
    for file in [*needed_modules().values(), paths.SOURCE / "05_predict.py"]:
        target = source / file.relative_to(paths.SOURCE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    place = source / "competitions"
    place.mkdir()
    shutil.copy(competition.file, place / f"{competition.name}.yaml")
    own = competition.metric.partition(":")[0].split(".")
    if ":" in competition.metric and (competition.file.parent / f"{own[0]}.py").exists():
        shutil.copy(competition.file.parent / f"{own[0]}.py", place)


# --- data -------------------------------------------------------------------------------------------------


def _copy_table(competition: Competition, table: pd.DataFrame, root: Path) -> None:
    derived, own = root / "input" / "derived" / competition.name, competition.derived()
    derived.mkdir(parents=True)
    table[table["split"] != "test"].to_parquet(derived / "index.parquet", index=False, write_page_checksum=True)
    shutil.copy(own / "folds.csv", derived)
    meta = json.loads((own / "folds.json").read_text(encoding="utf-8"))
    _copy(own, derived, [arrays.FILE])
    meta.pop("made_of", None)  # a file of folds need not be where the test set is
    write_json(derived / "folds.json", meta)
    meta = load_crop_meta(competition)
    if meta is None:
        return
    _copy(own, derived, ["crop.json", "boxes.csv"])
    if "trained_on" in meta:
        shutil.copytree(own / "detector", derived / "detector")
    elif meta["method"] == "detector":
        from foldwise.model import detector

        file = detector.coco_weights(meta["detector"], meta["weights"])
        if meta["weights"]:
            _copy_named(meta["weights"], "--weights", root)
        else:
            _copy_weights(file, root)


def _copy_member(competition: Competition, member: Member, root: Path, fp16: bool) -> None:
    """A run's saved models, and what its sources are made by."""
    runs, target = competition.runs(), root / "oof" / competition.name
    ending = {"head": "_head.npz", "table": "_model.npz"}.get(member.kind)
    _copy(runs / member.name, target / member.name, ["run.json"])
    if ending:
        _copy(runs / member.name, target / member.name, [f"fold{fold}{ending}" for fold in member.folds])
    if member.config.get("model") == "tabpfn":
        _copy_weights(learners.tabpfn_weights(member.config["params"]["weights"]), root)
    for source in member.sources(member.folds):
        if source.recipe.model.labels:
            _copy_named(source.recipe.model.labels, "model.labels", root)
        if source.run is None:
            _copy_backbones(source.recipe, root)
            continue
        own, to = runs / source.run, target / source.run
        _copy(own, to, ["run.json", f"fold{source.fold}.json", f"fold{source.fold}_metadata.json"])
        for file in own.glob(f"fold{source.fold}*.safetensors"):
            if fp16:
                from foldwise.model import weights

                weights.halve(file, to / file.name)
            else:
                shutil.copy(file, to / file.name)
    for given in member.config.get("embeddings") or []:
        for voucher in (runs / given).glob("*embeddings.json"):
            _copy(voucher.parent, target / given, [voucher.name])


def _copy(folder: Path, to: Path, names: Iterable[str]) -> None:
    """Files that are there; a JSON that names weights or labels by an absolute path names them as in the bundle."""
    to.mkdir(parents=True, exist_ok=True)
    for name in filter(lambda name: (folder / name).exists(), names):
        text = (folder / name).read_bytes()
        if name.endswith(".json"):
            text = re.sub(rb'("(?:weights|labels)": )"/[^"]*/([^"/]+)"', rb'\1"input/weights/\2"', text)
        (to / name).write_bytes(text)


def _copy_weights(file: Path, root: Path) -> None:
    """A file that is found in the bundle by its own name."""
    (root / "input" / "weights").mkdir(parents=True, exist_ok=True)
    shutil.copy(file, root / "input" / "weights")


def _copy_named(path: str, key: str, root: Path) -> None:
    """A file that a recipe names, to where it is looked for in the bundle."""
    from foldwise.model import weights

    to = root / (f"input/weights/{Path(path).name}" if Path(path).is_absolute() else path)
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(weights.named(path, key), to)


def _copy_backbones(recipe: Recipe, root: Path) -> None:
    """A recipe's pretrained weights where the bundle finds them: by the model's name, or at the path it names."""
    from foldwise.model import network, weights

    for backbone in filter(None, (recipe.model, recipe.model.second)):
        if backbone.weights is not None:
            _copy_named(backbone.weights, "model.weights", root)
            continue
        file = weights.of_backbone(backbone)
        to = root / "input" / "weights" / f"{backbone.name}{'.safetensors' if file is None else file.suffix}"
        to.parent.mkdir(parents=True, exist_ok=True)
        if file is not None:
            shutil.copy(file, to)
        elif not to.exists():
            network.save_pretrained(backbone.name, to)


def half_precision(competition: Competition, members: Mapping[str, Member], table: pd.DataFrame) -> dict[str, Any]:
    """What half precision costs: of each network's run the OOF score by its weights as they are, and halved."""
    from foldwise.data import cache, folds
    from foldwise.model import fold_models

    fold_table, changes = folds.load_folds(competition), dict[str, Any]()
    train = folds.rows(table, fold_table)
    for member in members.values():
        if member.kind != "network" or member.recipe is None:
            continue
        images = cache.load_cache(competition, member.recipe.image_size, member.recipe.crop)
        scores = []
        for halved in (False, True):
            parts = []
            for fold in member.folds:
                model = fold_models.load_fold(competition, member.recipe, str(member.weights_of), fold, table)
                for network in model.networks if halved else []:
                    for value in network.state_dict().values():
                        value.copy_(value.half() if value.is_floating_point() else value)
                rows = train[(fold_table["fold"] == fold).to_numpy()]
                pred = model.predict(images, images.rows_of(rows), rows, f"fold {fold}")
                parts.append(oof.prediction_table(competition, model.targets.names, rows, pred, fold))
            scores.append(oof.score(competition, pd.concat(parts), table))
        changes[member.name] = scores
        change = f"{scores[0]:.5f} -> {scores[1]:.5f} ({scores[1] - scores[0]:+.5f})"
        note(f"fp16: {member.name}: out-of-fold {competition.metric} {change}")
    return changes


# --- wheels -----------------------------------------------------------------------------------------------


def _wheels(table: pd.DataFrame, members: Iterable[Member], given: Path | None, dataset: Path) -> list[str]:
    """Requirements that Kaggle's image lacks and inference needs; copied where a folder of wheels is given."""
    lacking = list(DECODERS) if (table["format"] == "DICOM").any() else []
    if any(member.config.get("model") == "tabpfn" for member in members):
        lacking += TABPFN
    if given is None:
        return lacking
    files = sorted(given.glob("*.whl"))
    if not files:
        raise UserError(f"--wheels {given}: no .whl files in it; {fetch(lacking)}")
    (dataset / "wheels").mkdir(parents=True)
    for file in files:
        shutil.copy(file, dataset / "wheels")
    there = {re.sub(r"[-_.]+", "-", file.name.split("-")[0]).lower() for file in files}
    return [name for name in lacking if name not in there]


def fetch(lacking: Iterable[str]) -> str:
    """The command that fetches wheels."""
    return f"pip download --no-deps -d wheels {' '.join(lacking)}"


# --- the notebook -----------------------------------------------------------------------------------------


NOTEBOOK = paths.REPOSITORY / "notebooks" / "06_submit_on_kaggle.ipynb"


def kernel_notebook(competition: str, name: str, wish: Wish) -> dict[str, Any]:
    """notebooks/06_submit_on_kaggle with a bundle's settings."""
    hours, text = wish.hours - min(0.25, wish.hours / 10), NOTEBOOK.read_text(encoding="utf-8")
    text = text.replace("HOURS = 8.75  # of the rerun's 9", f"HOURS = {hours:g}  # of the rerun's {wish.hours:g}")
    old, new = (
        _settings(*words) for words in (("foldwise-demo-blend", "blend", "demo"), (wish.slug, name, competition))
    )
    if old not in text:
        raise UserError(f"{NOTEBOOK}: its settings are not those that a bundle fills in; restore it")
    return json.loads(text.replace(old, new))


def _settings(*words: str) -> str:
    """The line of the notebook's JSON that names dataset, submission and competition."""
    named = ", ".join(f'"{word}"' for word in words)
    return "DATASET, SUBMISSION, COMPETITION = " + json.dumps(named)[1:-1]


def script_of(notebook: Mapping[str, Any]) -> str:
    """The notebook's code as one file."""
    code = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return "\n\n".join("".join(source) for source in code) + "\n"


def _write_kernel(out: Path, competition: str, slug: str, name: str, wish: Wish) -> None:
    notebook = kernel_notebook(competition, name, wish)
    write_text(out / "submit.py", script_of(notebook))
    (out / "kernel").mkdir()
    write_json(out / "kernel" / "submit.ipynb", notebook)
    title = f"{wish.title} submit"
    meta = {
        "id": f"{wish.owner}/{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}",
        "title": title,
        "code_file": "submit.ipynb",
        **KERNEL,
        "enable_gpu": wish.gpu,
        "machine_shape": "NvidiaTeslaT4" if wish.gpu else "",  # T4 x2
        "dataset_sources": [f"{wish.owner}/{wish.slug}"],
        "competition_sources": [slug],
    }
    write_json(out / "kernel" / "kernel-metadata.json", meta)
    dataset = {"title": wish.title, "id": f"{wish.owner}/{wish.slug}", "licenses": [{"name": "CC0-1.0"}]}
    write_json(out / "dataset" / "dataset-metadata.json", dataset)


# --- checks -----------------------------------------------------------------------------------------------


def check(folder: Path) -> list[str]:
    """What the host would refuse in a bundle, and what of it is no longer as it was made; none where all is well."""
    about = read_about(folder)
    return broken_rules(folder, about) + damaged(folder, about)


def broken_rules(folder: Path, about: Mapping[str, Any]) -> list[str]:
    """What the host would refuse, a line a rule. UserError where its metadata can't be read."""
    dataset, kernel = (_read(folder / name) for name in EDITED)
    rules = [*_dataset_rules(folder, dataset), *_kernel_rules(folder, kernel, about["slug"], dataset.get("id"))]
    return [f"{name}: {why}" for name, fine, why in rules if not fine]


def _dataset_rules(folder: Path, dataset: Mapping[str, Any]) -> Iterator[Rule]:
    title, file, size = dataset.get("title"), "dataset-metadata.json", _bytes(folder / "dataset")
    yield "dataset title", _is_title(title, 6), f"{file} has {title!r}; 6 to 50 characters are allowed"
    yield "dataset id", _is_id(dataset.get("id")), f"'{dataset.get('id')}' is not owner/slug; --owner YOU"
    licences = _listed(dataset.get("licenses"))
    named = [str(one.get("name") or "").strip() for one in licences if isinstance(one, dict)]
    fine = len(licences) == len(list(filter(None, named))) == 1
    yield "dataset licence", fine, f"{file} has {dataset.get('licenses')}; exactly one, with a name, is allowed"
    yield "dataset size", size <= DATASET, f"{size / 1e9:.1f} GB of 100"


def _kernel_rules(folder: Path, kernel: Mapping[str, Any], slug: str, dataset: object) -> Iterator[Rule]:
    title, code = kernel.get("title"), folder / "kernel" / str(kernel.get("code_file"))
    wanted = {"id", "title", "code_file", *KERNEL, "enable_gpu", "machine_shape", "dataset_sources"}
    missing = sorted((wanted | {"competition_sources"}) - set(kernel))
    yield "kernel keys", not missing, f"kernel-metadata.json lacks {', '.join(missing)}"
    yield "kernel title", _is_title(title, 5), f"kernel-metadata.json has {title!r}; 5 to 50 characters are allowed"
    yield "kernel id", _is_id(kernel.get("id")), f"'{kernel.get('id')}' is not owner/slug; --owner YOU"
    yield "kernel code", code.is_file(), f"{code}: not there"
    offline = kernel.get("enable_internet") is False
    yield "internet", offline, "enable_internet must be false for a hidden test set"
    yield "slug", kernel.get("competition_sources") == [slug], f"competition_sources is not [{slug}]"
    yield "slug", dataset in _listed(kernel.get("dataset_sources")), f"dataset_sources lacks {dataset}"
    own = str(dataset).rpartition("/")[2]
    for file in filter(Path.is_file, (code, folder / "submit.py")):
        text = file.read_text(encoding="utf-8", errors="replace")
        named = re.search(r'DATASET, SUBMISSION, COMPETITION = \\?"([^"\\]*)', text)
        found = named and named[1]
        yield "slug", found == own, f"{file.name} looks for '{found}', not '{own}'"


def digests(folder: Path) -> dict[str, str]:
    """A hash of each file that the bundle is made of, save for those that the host's rules may ask to edit."""
    files = [folder / "submit.py", *sorted((folder / "dataset").rglob("*")), *sorted((folder / "kernel").rglob("*"))]
    names = {file.relative_to(folder).as_posix(): file for file in files if file.is_file()}
    return {name: file_digest(file) for name, file in names.items() if name not in EDITED}


def damaged(folder: Path, about: Mapping[str, Any]) -> list[str]:
    """Files that are missing or changed, or that were added to code and models, since it was made; a line a file."""
    made, now = about["files"], digests(folder)
    what = {name: "missing" if name not in now else "changed" for name in made if now.get(name) != made[name]}
    what |= {name: "added" for name in now if name not in made and name.startswith(WHOLE)}
    if not what:
        what = {f"dataset/{name}": "missing" for name in missing_files(folder, about)}
    return [f"file {how}: {name}; where that is meant, make the bundle again" for name, how in what.items()]


def missing_files(folder: Path, about: Mapping[str, Any]) -> list[str]:
    """What of the code, the blend and the runs is not there, below the dataset."""
    dataset = folder / "dataset"
    code, runs = dataset / "code" / "src", dataset / "root" / "oof" / about["competition"]
    wanted = [code / file.relative_to(paths.SOURCE) for file in needed_modules().values()]
    wanted += [code / "05_predict.py", code / "competitions" / f"{about['competition']}.yaml"]
    derived = dataset / "root" / "input" / "derived" / about["competition"]
    wanted += [derived / name for name in ("index.parquet", "folds.csv", "folds.json")]
    wanted += [dataset / "root" / "submissions" / about["competition"] / f"{about['submission']}.json"]
    for run, every in about["runs"].items():
        wanted.append(runs / run / "run.json")
        if not wanted[-1].exists():
            continue
        config = _read(wanted[-1])
        ending = "_head.npz" if "embed" in config["config"] else "_model.npz"
        network = "image_size" in config["config"]
        own = runs / (config.get("weights_of") or run)
        wanted += [own / f"fold{fold}.safetensors" if network else own / f"fold{fold}{ending}" for fold in every]
        embedder = config["config"].get("embed", {}).get("run")
        wanted += [runs / embedder / f"fold{fold}.safetensors" for fold in every if embedder]
    return [str(path.relative_to(dataset)) for path in dict.fromkeys(wanted) if not path.exists()]


def sizes(folder: Path, about: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, how much, the host's limit), a row a line of the table."""
    dataset = folder / "dataset"
    models, code = _bytes(dataset / "root"), _bytes(dataset / "code")
    rows = [
        ("models", f"{models / 1e6:.1f} MB", ""),
        ("code", f"{code / 1e6:.1f} MB", ""),
        ("wheels", f"{_bytes(dataset / 'wheels') / 1e6:.1f} MB", ""),
        ("dataset", f"{_bytes(dataset) / 1e9:.3f} GB", f"{DATASET / 1e9:.0f} GB"),
        ("dataset title", f"{len(_read(dataset / 'dataset-metadata.json')['title'])} characters", "6 to 50"),
        ("kernel title", f"{len(_read(folder / 'kernel' / 'kernel-metadata.json')['title'])} characters", "5 to 50"),
    ]
    pace = about.get("seconds_per_1000")
    if pace is not None:
        rows.append(("1,000 images", duration(pace), f"{about['hours']:g} h in all"))
    return rows


def read_about(folder: Path) -> dict[str, Any]:
    """bundle.json; UserError where the folder is no bundle."""
    path = folder / "bundle.json"
    if not path.exists():
        raise UserError(f"{folder}: no bundle.json in it; make a bundle with 11_bundle.py --submission NAME --out DIR")
    return validate(About, _read(path), f"{path} (make the bundle again)").model_dump()


def push(folder: Path) -> None:
    """Upload dataset and notebook by the kaggle client; UserError where a rule is broken or there is no client."""
    wrong = check(folder)
    if wrong:
        raise UserError(f"{folder}: not pushed: {'; '.join(wrong)}")
    client, about = shutil.which("kaggle"), read_about(folder)
    if client is None:
        raise UserError("--push: no kaggle client; pip install kaggle, and put a token where it looks for one")
    known = subprocess.run([client, "datasets", "status", about["dataset"]], capture_output=True).returncode == 0
    how = ["version", "-m", about["foldwise"]] if known else ["create"]
    subprocess.run([client, "datasets", *how, "-p", str(folder / "dataset"), "--dir-mode", "zip"], check=True)
    subprocess.run([client, "kernels", "push", "-p", str(folder / "kernel")], check=True)
    kernel = _read(folder / "kernel" / "kernel-metadata.json")["id"]
    print(f"when it has run: kaggle competitions submit {about['slug']} -k {kernel} -f submission.csv -v 1 -m bundle")


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; UserError where there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({error}); make the bundle again") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a JSON object belongs there, not {str(data)[:60]}; make the bundle again")
    return data


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_title(text: object, least: int) -> bool:
    return isinstance(text, str) and least <= len(text) <= 50


def _is_id(text: object) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9-]{3,}/[a-z0-9-]{3,50}", str(text))) and not str(text).startswith("OWNER/")


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
