"""The photographs that ship inside Python packages, as a folder for `image_crops`.

    python benchmarks/photographs.py FOLDER

Twelve pictures of scikit-image, scikit-learn and matplotlib, four of them apart in FOLDER/held_out:
whole pictures, so that nothing of them is trained on. Of the stereo pair both are trained on.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from pathlib import Path

TRAIN = {
    "skimage": (
        "data/astronaut.png",
        "data/brick.png",
        "data/coffee.png",
        "data/grass.png",
        "data/gravel.png",
        "data/motorcycle_left.png",
        "data/motorcycle_right.png",
        "data/rocket.jpg",
    ),
    "sklearn": ("datasets/images/flower.jpg",),
}
HELD_OUT = {
    "skimage": ("data/camera.png", "data/chelsea.png"),
    "sklearn": ("datasets/images/china.jpg",),
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
}


def collect(folder: Path, grey: bool) -> None:
    """Copy the pictures; without those in grey alone unless `grey`."""
    alone = {"brick.png", "grass.png", "gravel.png", "camera.png"}
    for target, packages in ((folder, TRAIN), (folder / "held_out", HELD_OUT)):
        target.mkdir(parents=True, exist_ok=True)
        for package, names in packages.items():
            spec = importlib.util.find_spec(package)
            assert spec is not None and spec.origin is not None, package
            for name in names:
                if grey or Path(name).name not in alone:
                    shutil.copy(Path(spec.origin).parent / name, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--grey", action="store_true", help="with those that have no colour")
    options = parser.parse_args()
    collect(options.folder, options.grey)


if __name__ == "__main__":
    main()
