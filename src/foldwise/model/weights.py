"""Files of weights: where they lie, here or on Kaggle, and what is in them."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from foldwise import UserError
from foldwise.core import paths
from foldwise.core.cli import note
from foldwise.core.files import replacing
from foldwise.data.recipe import Backbone
from foldwise.model import lora

ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
FORMAT = 2  # of the tensors' names: raise it when they change (finetune reads those of before)


def named(path: str, key: str) -> Path:
    """A file that a recipe names: relative to here, the repository or the output root; a bare name wherever it lies."""
    for base in (Path(), paths.REPOSITORY, paths.output_root()):
        if (base / path).is_file():
            return base / path
    file = _by_name([path]) if "/" not in path else None
    if file is None:
        bare = f", and by its name in {', '.join(map(str, folders()))}" if "/" not in path else ""
        raise UserError(
            f"{key}={path}: no such file (looked here, in {paths.REPOSITORY} and in {paths.output_root()}{bare})"
        )
    return file


def folders() -> list[Path]:
    """Where files of weights are looked for, the nearest first, each with all that lies below it."""
    shared = Path(os.environ.get("FOLDWISE_SHARED", paths.REPOSITORY.parent / "shared"))
    own = [paths.output_root() / "input" / "weights", paths.REPOSITORY / "input" / "weights", shared / "weights"]
    return list(dict.fromkeys([*own, paths.KAGGLE_INPUT, Path(torch.hub.get_dir()) / "checkpoints"]))


def _by_name(names: Sequence[str]) -> Path | None:
    """The first file of the first of `names` that lies below one of the folders; 'x/y' is a file y somewhere in x."""
    files = list(within_reach())
    for folder, name in (one.rpartition("/")[::2] for one in names):
        for file in files:
            if file.name == name and (not folder or folder in file.parts):
                return file
    return None


def within_reach() -> Iterator[Path]:
    """All files of weights that lie in `folders`, the nearest first."""
    return (file for folder in folders() for file in files_below(folder))


def files_below(folder: Path) -> Iterator[Path]:
    """Files of weights in a folder and at most five below it; not in the raw files of competitions."""
    for place, inside, names in os.walk(folder, followlinks=True):
        depth = len(Path(place).parts) - len(folder.parts)
        inside[:] = sorted(name for name in inside if depth < 5 and name != "competitions")
        yield from (Path(place, name) for name in sorted(names) if name.endswith(ENDINGS))


def save(network: nn.Module, path: Path, classes: Sequence[str] = ()) -> None:
    """All weights and buffers as safetensors, written whole, with the names of what the outputs mean."""
    from safetensors.torch import save_file

    state = lora.merged(network.state_dict())
    state = {key: value.contiguous() for key, value in state.items() if not key.startswith("beside.")}
    with replacing(path) as part:
        # one entry: safetensors writes several in an order of chance, and the same weights are to be the same bytes
        meta = {"format": FORMAT, "classes": list(classes), "checksum": checksum(state)}
        save_file(state, part, {"foldwise": json.dumps(meta)})


def halve(path: Path, to: Path) -> None:
    """Weights of `save` once more, their floats in half precision: half the bytes, read as any."""
    from safetensors.torch import save_file

    meta, state = _metadata(path), read_state(path)
    halved = {key: value.half() if value.dtype == torch.float32 else value for key, value in state.items()}
    with replacing(to) as part:
        save_file(halved, part, {"foldwise": json.dumps({**meta, "checksum": checksum(halved)})})


def checksum(state: dict[str, Tensor]) -> str:
    """Of all bytes: safetensors has none, and a flipped bit loads without a word."""
    hashed = hashlib.blake2b(digest_size=16)
    for key in sorted(state):
        hashed.update(state[key].contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _metadata(path: Path) -> dict[str, Any]:
    """What `save` wrote beside the tensors; {} in files of others."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
        if "foldwise" in meta:
            return json.loads(meta["foldwise"])
        if "classes" in meta:  # format 1
            return {"format": 1, "checksum": meta.get("checksum"), "classes": json.loads(meta["classes"])}
    except Exception as error:  # safetensors has its own
        raise UserError(f"{path}: damaged ({error}); train the fold again with --restart") from None
    return {}


def format_of(path: Path) -> int:
    """The format of the tensors' names in a file of `save`; UserError where this version is too old for it."""
    number = int(_metadata(path).get("format", 1))
    if number > FORMAT:
        raise UserError(f"{path}: written by a newer foldwise (format {number}, this one reads {FORMAT}); update it")
    return number


def classes_of(path: Path) -> list[str]:
    """The classes that weights of `save` tell apart; none where the file is not there, or not ours."""
    return list(_metadata(path).get("classes") or []) if path.exists() else []


def check_classes(path: Path, classes: Sequence[str]) -> None:
    """UserError where weights that `save` wrote tell other classes apart, or the same ones in another order."""
    made = _metadata(path).get("classes")
    if made is not None and made != list(classes):
        other = [f"'{old}', now '{new}'" for old, new in zip(made, classes, strict=False) if old != new]
        raise UserError(
            f"{path}: trained on other classes ({other[0] if other else f'{len(made)}, now {len(classes)}'}): its "
            "outputs would stand under wrong names; name the class back, or train it anew"
        )


def of_backbone(settings: Backbone, key: str = "model") -> Path | None:
    """The file of `weights`, else one of the model's name, or of the name under which timm or its hub hands it out."""
    if settings.weights is not None:
        return named(settings.weights, f"{key}.weights")
    known = timm.models.get_pretrained_cfg(settings.name)
    names = [settings.name]
    if known is not None:  # timm's default weights go by the bare name, too
        tagged = f"{known.architecture}.{known.tag}"
        usual = timm.models.get_pretrained_cfg(str(known.architecture))
        names = list(dict.fromkeys([*names, tagged, *([str(known.architecture)] if known == usual else [])]))
    files = [f"{name}{ending}" for name in names for ending in ENDINGS]
    files += [str(known.url).rpartition("/")[2]] if known is not None and known.url else []
    files += [f"{name}/{file}" for name in names for file in ("model.safetensors", "pytorch_model.bin")]
    return _by_name(files)


def on_the_hub(settings: Backbone) -> bool:
    """Whether timm's own weights lie in the hub's cache, so that no network is needed."""
    from huggingface_hub import try_to_load_from_cache

    known = timm.models.get_pretrained_cfg(settings.name)
    names = ("model.safetensors", "pytorch_model.bin")
    if known is None or not known.hf_hub_id:
        return False
    return any(isinstance(try_to_load_from_cache(str(known.hf_hub_id), name), str) for name in names)


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a torch file read with weights_only=True (no code can run)."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(path)
            if _metadata(path).get("checksum") not in {None, checksum(tensors)}:
                raise ValueError("its checksum does not fit: the file is damaged")
            return tensors
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        if "weights_only" in why:  # torch's advice is to let the file's code run
            why = "it holds more than tensors, and code is not run; save its state_dict as .safetensors if you trust it"
        raise UserError(f"{path}: can't be read as weights: {why}") from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    return {key.removeprefix("module."): value for key, value in state.items()}


def misfit(error: Exception) -> str:
    """Torch's complaint about a state dict that does not fit, in a few words: the first tensor of another shape."""
    found = re.search(r"size mismatch for (\S+): .*?\[([\d, ]*)\].*?\[([\d, ]*)\]", " ".join(str(error).split()))
    if not found:
        return " ".join(str(error).split())[:200]
    theirs, ours = (" x ".join(shape.split(", ")) or "a number" for shape in found.groups()[1:])
    return f"{found[1]} is {theirs} in the file and {ours} in the model"


def check_covered(backbone: nn.Module, heads: list[str], state: dict[str, Tensor], file: Path, name: str) -> None:
    """timm loads what fits and is silent about the rest: a file of another model must not pass for random weights."""
    wanted = [key for key in backbone.state_dict() if not key.startswith(tuple(f"{head}." for head in heads))]
    missing = [key for key in wanted if key not in state]
    if len(missing) == len(wanted):
        raise UserError(f"{file}: holds none of the layers of {name}; it is of another model")
    if missing:
        note(f"warning: {file} lacks {len(missing)} of {len(wanted)} tensors of {name}, such as {missing[0]}")


def offline_if_unreachable(host: str = "huggingface.co", seconds: float = 3.0) -> bool:
    """Without a network, make the hub fail at once instead of after 47 s of retries; its local cache still serves.

    Whether the hub is reached.
    """
    import huggingface_hub.constants

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    reached = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, 443), timeout=seconds).close()
            reached.set()
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)  # a name server that hangs is not covered by the timeout
    thread.start()
    thread.join(seconds)
    if not reached.is_set():
        huggingface_hub.constants.HF_HUB_OFFLINE = True
    return reached.is_set()


def read_labels(path: Path, outputs: int) -> list[str]:
    """One name a line, `outputs` of them; a first line more (TensorFlow's 'background') is dropped, and said so."""
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"model.labels={path}: can't be read as text: {error}") from None
    while names and not names[-1].strip():
        names.pop()
    if len(names) == outputs + 1:
        note(f"{path}: {len(names)} names for {outputs} outputs; its first line, '{names[0]}', is dropped")
        names = names[1:]
    if len(names) != outputs:
        raise UserError(f"model.labels={path}: {len(names)} names, but the pretrained head has {outputs} outputs")
    return names


def match_labels(classes: list[str], names: list[str], label_map: dict[str, list[str]]) -> dict[str, list[int]]:
    """Outputs of the pretrained head that mean each class: by `label_map`, else by name, case and underscores aside.

    classes: the competition's; names: the head's, in its order. Two outputs of one name both count.
    """
    unknown = set(label_map) - set(classes)
    if unknown:
        raise UserError(f"model.label_map: '{sorted(unknown)[0]}' is no class of the competition: {', '.join(classes)}")
    places: dict[str, list[int]] = {}
    for k, name in enumerate(names):
        for one in {_plain(name), *map(_plain, name.split(","))}:  # ImageNet's lists have 'ant, emmet, pismire'
            places.setdefault(one, []).append(k)
    found: dict[str, list[int]] = {}
    for label in classes:
        wanted = label_map.get(label, [label])
        for name in wanted:
            if _plain(name) not in places:
                raise UserError(_no_such(label, name, names, label in label_map))
        found[label] = sorted({k for name in wanted for k in places[_plain(name)]})
    return found


def _no_such(label: str, name: str, names: list[str], mapped: bool) -> str:
    close = difflib.get_close_matches(_plain(name), [_plain(other) for other in names], n=5, cutoff=0.4)
    hint = f"nearest: {', '.join(dict.fromkeys(close))}" if close else "none is near"
    where = f"model.label_map: {label}" if mapped else "model.labels"
    return f"{where}: no pretrained class is called '{name}' ({hint}); set model.label_map={{{label}: [NAME]}}"


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
