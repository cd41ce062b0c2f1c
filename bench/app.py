"""How long the web app's answer takes once its models are loaded: MobileNetV2 at 224, five folds, on this CPU.

From the uploaded bytes to every fold's probabilities, and on to the class activation map; without the browser. The
weights are ImageNet's, untrained on skin1500: the time is the same.

  python bench/app.py [--rounds 10]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    data = Path(os.environ.get("FOLDWISE_SHARED", REPOSITORY.parent / "shared")) / "data" / "skin1500"
    if not data.exists():
        print(f"left out: {data} is not there")
        return
    with tempfile.TemporaryDirectory() as root:
        os.environ["FOLDWISE_ROOT"] = root
        script = REPOSITORY / "src" / "01_preprocess.py"
        subprocess.run(
            [sys.executable, script, "--competition", "skin1500", "--sizes", "224"], check=True, capture_output=True
        )
        times = measure(sorted((data / "test").glob("*.jpg"))[: args.rounds])
    for name, values in times.items():
        print(f"{name:<52} median {np.median(values):.2f} s, slowest {max(values):.2f} s of {len(values)}")


def measure(files: list[Path]) -> dict[str, list[float]]:
    """Seconds from the bytes to the probabilities, and to the map."""
    from foldwise.core import parallel

    parallel.tune_allocator()
    from app import uploads
    from app.service import Service
    from foldwise.data import folds
    from foldwise.data.competition import load_competition
    from foldwise.data.recipe import load_recipe, recipe_settings
    from foldwise.data.runs import open_run
    from foldwise.model import weights
    from foldwise.model.network import create_network

    about = load_competition("skin1500")
    recipe = load_recipe("mobilenetv2", [])
    folder = open_run(about, "mobilenetv2", recipe_settings(recipe), folds.load_folds(about))
    network = create_network(recipe, 1)
    for fold in range(5):
        weights.save(network, folder / f"fold{fold}.safetensors")
    service = Service(about)
    uploads.prepare()
    times: dict[str, list[float]] = {"upload to five folds' probabilities": [], "upload to probabilities and map": []}
    for k, file in enumerate([files[0], *files]):
        started = time.perf_counter()
        with uploads.receiving([uploads.Upload(file.name, file.read_bytes())]) as received:
            answer = service.predict(received, ["mobilenetv2"])
        predicted = time.perf_counter() - started
        service.map(answer, "mobilenetv2", 0, 0)
        if k:  # the first loads the models
            times["upload to five folds' probabilities"].append(predicted)
            times["upload to probabilities and map"].append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    main()
