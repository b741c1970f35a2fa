# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which images are unlike the training data, and where
#
# This notebook gives each image a number that says how unlike the training images it is, and a map
# that says where. No unusual image is needed for it. Noise is added to an image, and the model
# takes it away again; it has said beforehand, by its covariance, how large the error may be. On
# images like those of training the error is what it said, on others it is larger. You will see the
# scores of held-out digits beside those of letters, turned digits, digits with a hole and digits
# with a grey square, which digits are the oddest, and the maps.
#
# The run is read from `runs/diffusion`, that of the page "Samples from noise, in few steps".
# If it is not there, it is made of the weights that come with the package.

# %%
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import mannwhitneyu

from hos_jax import load_run, pointwise
from hos_jax.migrate import import_checkpoint
from hos_jax.uses import unusual

plt.rcParams["figure.dpi"] = 100
RUN = Path("runs/diffusion")
COUNT, AT_ONCE, SHOWN = 48, 16, 8

# %%
if not RUN.is_dir():
    import_checkpoint("diffusion", RUN)

run = load_run(RUN)
data = run.problem.data
low, high = data.value_range
side = run.image_shape[0]
training = data.to_float(data.train[: 4 * COUNT])
digits = data.to_float(data.held_out[: 2 * COUNT])
print(f"{run.problem.config.data.name}, {run.step} steps, images of {run.image_shape}")

# %% [markdown]
# ## Images that are no digits, or not whole
#
# Letters are drawn as large as digits are, and in the middle. A hole is a black square on a stroke;
# a grey square lies anywhere.

# %%
rng = np.random.default_rng(0)
FONT = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans-Bold.ttf", 100)


def letter():
    canvas = Image.new("L", (200, 200))
    name = rng.choice(list("ABCDEFGHJKLMNPQRSTUVWXYZ"))
    ImageDraw.Draw(canvas).text((40, 30), name, 255, font=FONT)
    figure = canvas.crop(canvas.getbbox())
    scale = 0.7 * side / max(figure.size)
    small = figure.resize([max(1, round(length * scale)) for length in figure.size])
    image = Image.new("L", (side, side))
    image.paste(small, tuple((side - length) // 2 for length in small.size))
    return low + (high - low) * np.asarray(image, np.float32)[..., None] / 255


def with_square(image, length, value, on_stroke):
    """The image and where it was changed, two (H, W, 1)."""
    inside = np.argwhere(image[..., 0] > (low + high) / 2)
    centre = rng.choice(inside) if on_stroke else rng.integers(0, side, 2)
    top, left = np.clip(centre - length // 2, 0, side - length)
    where = np.zeros(image.shape, bool)
    where[top : top + length, left : left + length] = True
    return np.where(where, np.float32(value), image), where


def squares(*args):
    return map(np.stack, zip(*(with_square(image, *args) for image in digits[COUNT:]), strict=True))


holed, holes = squares(2 * side // 7, low, True)
marked, marks = squares(side // 7, (low + high) / 2, False)
kinds = {
    "held-out digits": digits[:COUNT],
    "letters": np.stack([letter() for _ in range(COUNT)]),
    "turned by 90 degrees": np.rot90(digits[COUNT:], axes=(1, 2)),
    "digits with a hole": holed,
    "digits with a grey square": marked,
}


def show(rows, axes, **options):
    for row, images in zip(axes, rows, strict=True):
        for axis, image in zip(row, images, strict=False):
            axis.imshow(image[..., 0], **{"cmap": "gray", "vmin": low, "vmax": high} | options)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])


figure, axes = plt.subplots(len(kinds), SHOWN, figsize=(10, 6.4), layout="constrained")
show(kinds.values(), axes)
for name, row in zip(kinds, axes, strict=True):
    label = name.replace(" with", "\nwith").replace(" by", "\nby")
    row[0].set_ylabel(label, rotation=0, ha="right", va="center")
plt.show()

# %% [markdown]
# ## Scores
#
# One evaluation for each of three noise levels and two draws of the noise. Two numbers are taken at
# each level: `spread`, the squared errors in units of what the model expects of each pixel, and
# `trace`, how unsure it is. Training digits say what is usual, and the score says how far an image
# is above that.

# %%
sigmas = jnp.array([0.1, 0.4, 1.6])
derivatives_fn = pointwise.derivatives_fn(run)


def in_parts(fn, seed, images):
    """`fn(key, image)` over flat images, so many at once."""
    flat = np.reshape(images, (len(images), -1))
    keys = jax.random.split(jax.random.key(seed), len(flat))
    parts = [slice(i, i + AT_ONCE) for i in range(0, len(flat), AT_ONCE)]
    return np.concatenate([fn(keys[part], flat[part]) for part in parts])


@jax.jit
@jax.vmap
def features(key, clean):
    found = unusual.features(key, clean, derivatives_fn, sigmas, draws=2)
    return found.stacked("spread", "trace")


usual = unusual.usual(jnp.asarray(in_parts(features, 0, training)))
score = jax.vmap(functools.partial(unusual.excess, usual))
scores = {
    name: np.asarray(score(in_parts(features, 1 + number, images)))
    for number, (name, images) in enumerate(kinds.items())
}

# %% [markdown]
# Each point is an image. AUROC is how often an image of this kind has a larger score than a
# held-out digit: 1 is always, 0.5 is by chance.

# %%
figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
known = scores["held-out digits"]
for height, (name, values) in enumerate(scores.items()):
    jitter = rng.uniform(-0.25, 0.25, len(values))
    axis.plot(np.maximum(values, 1e-3), height + jitter, "o", alpha=0.5, markersize=5)
    if values is not known:
        auroc = mannwhitneyu(values, known).statistic / len(values) / len(known)
        print(f"{name:<26} AUROC {auroc:.2f}")
axis.axvline(np.quantile(known, 0.9), color="0.5", linestyle="--")
axis.set(xscale="log", xlabel="score; dashed: 90% of the held-out digits are below")
axis.set_yticks(range(len(scores)), scores)
axis.invert_yaxis()
plt.show()

# %% [markdown]
# ## The oddest digits, and the most usual ones
#
# Held-out digits of the highest score, and below them of the lowest.

# %%
by_score = np.argsort(known)
order = np.stack([by_score[::-1][:SHOWN], by_score[:SHOWN]])
figure, axes = plt.subplots(2, SHOWN, figsize=(10, 2.9), layout="constrained")
show(digits[order], axes)
for axis, index in zip(axes.flat, order.flat, strict=True):
    axis.set_title(f"{known[index]:.2f}", fontsize=11)
plt.show()

# %% [markdown]
# ## Where
#
# The squared error of each pixel in units of its predicted variance, a mean over levels and draws:
# about 1 (black) where all is as expected. Below the images are the maps, on a logarithmic scale.
# The squares are outlined in the maps.


# %%
@jax.jit
@jax.vmap
def maps(key, clean):
    return unusual.unusual_map(key, clean, derivatives_fn, sigmas)


found = {
    "grey square": (marked, marks, in_parts(maps, 10, marked[:AT_ONCE])),
    "hole": (holed, holes, in_parts(maps, 11, holed[:AT_ONCE])),
}
figure, axes = plt.subplots(4, SHOWN, figsize=(10, 5.6), layout="constrained")
for rows, (images, places, values) in zip(axes.reshape(2, 2, -1), found.values(), strict=True):
    values = values.reshape(-1, *run.image_shape)
    show([images], rows[:1])
    show([np.log10(values)], rows[1:], cmap="magma", vmin=0.0, vmax=1.5)
    for axis, place in zip(rows[1], places, strict=False):
        axis.contour(place[..., 0], levels=[0.5], colors="tab:cyan", linewidths=1)
plt.show()

for name, (_, places, values) in found.items():
    pairs = [(m[p.ravel()], m[~p.ravel()]) for m, p in zip(values, places, strict=False)]
    shares = [mannwhitneyu(a, b).statistic / len(a) / len(b) for a, b in pairs]
    print(f"a pixel of the {name} has a larger value than one outside: {np.mean(shares):.2f}")

# %% [markdown]
# What is there and should not be, the map finds. What is missing it need not find: black is nowhere
# a surprise to a model of digits, whose margins are black. A hole shows in the score of the whole
# image more than in the map.
