"""Step 9: a web app to try trained runs on new images and to look at what they got wrong, on this machine alone.

reads    input/derived/<competition>/ (index, folds, images), oof/<competition>/<run>/ (weights and tables of step 2),
         submissions/<competition>/*.json (blends of step 6)
writes   input/derived/<competition>/neighbours/: embeddings of the training images, when somebody asks for neighbours

Upload an image (JPEG, PNG, TIFF, WebP, DICOM, ...) or draw one; files pass through the code that made the training
images. It answers on this machine's own address, fetches nothing, and sends nothing anywhere.

examples
  python src/09_app.py                                     # the demo, at http://localhost:8501
  python src/09_app.py --competition skin1500 --port 8502
  streamlit run src/09_app.py -- --competition skin1500    # the same, with Streamlit's own flags before the --
"""

from __future__ import annotations

import os
import sys
import tomllib
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

from foldwise import UserError
from foldwise.core import cli
from foldwise.data import index
from foldwise.data.competition import load_competition

SETTINGS = Path(__file__).resolve().parents[1] / ".streamlit" / "config.toml"


def arguments() -> Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--address", default="localhost", help="where it listens (default: localhost, nobody else)")
    parser.add_argument("--port", type=int, default=8501, help="(default: 8501)")
    return parser.parse_args()


def start() -> None:
    """Check what can be checked, then become `streamlit run` on this file."""
    args = arguments()
    index.load_index(load_competition(args.competition))
    if find_spec("streamlit") is None:
        raise UserError("streamlit is not installed: pip install -r requirements.txt")
    sections = tomllib.loads(SETTINGS.read_text(encoding="utf-8")) if SETTINGS.exists() else {}
    settings = {
        f"{name}.{key}": value
        for name in ("server", "browser", "client")
        for key, value in sections.get(name, {}).items()
    }
    settings |= {"server.address": args.address, "server.port": args.port}
    flags = [f"--{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in settings.items()]
    own = ["--competition", args.competition]
    print(f"http://{args.address}:{args.port} shows {args.competition}; Ctrl-C ends it", file=sys.stderr, flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", __file__, *flags, "--", *own])


def is_served() -> bool:
    """Whether Streamlit runs this file."""
    runtime = sys.modules.get("streamlit.runtime")
    return runtime is not None and runtime.exists()


def show() -> None:
    """The app, once for every look at it."""
    from app import main

    main.show(arguments().competition)


if __name__ == "__main__":
    if is_served():
        show()
    else:
        cli.run(start)
