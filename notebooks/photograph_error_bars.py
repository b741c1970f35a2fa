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
# # Error bars for a denoiser without a network
#
# This notebook takes a denoiser that nobody trained, non-local means of scikit-image, and learns
# the covariance of what it leaves of the noise on photographs. The denoiser is only called: it has
# no derivative, so nothing that differentiates a denoiser can say how sure it is. You will see the
# map of deviations of a photograph that training never saw beside the true error, how often
# intervals hold, and draws of the clean picture.
#
# The run is kept in `runs/nl_means`. If it is not there it is trained first, some minutes on two
# CPU cores. The same from the command line is the page "Error bars for a denoiser that you have".

# %%
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.cbook
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from hos_jax import load_run, losses, pointwise, train_and_evaluate
from hos_jax.config import named_config
from hos_jax.linops import Diagonal

plt.rcParams["figure.dpi"] = 100
RUN = Path("runs/nl_means")
STEPS = 800
SIDE = 256  # of the part of the photograph that is shown

# %% [markdown]
# ## The denoiser
#
# A function of NumPy images, black 0 and white 1, and of the deviation of the noise in each of
# them. It stands in a file, so that the run can find it again.

# %%
DENOISER = '''
import numpy as np
from skimage.restoration import denoise_nl_means


def denoise(noisy, sigma):
    """Images (N, H, W, 1), and the deviation of the noise in each of them, (N,)."""

    def one(image, level):
        return denoise_nl_means(image, patch_size=5, patch_distance=6, h=0.6 * level, sigma=level)

    pairs = zip(noisy[..., 0], sigma, strict=True)
    return np.stack([one(image, float(level)) for image, level in pairs])[..., None]
'''
RUN.parent.mkdir(exist_ok=True)
FILE = (RUN.parent / "nl_means.py").absolute()
FILE.write_text(DENOISER)

# %% [markdown]
# ## Training
#
# On crops of seven photographs that come with scikit-learn and scikit-image. One network sees the
# noisy picture and what the denoiser takes off, and says a covariance of local factors and low
# rank.

# %%
if not RUN.is_dir():
    logging.disable(logging.INFO)
    config = named_config("second_order")
    config.model.update(denoiser=f"{FILE}:denoise", data_std=0.5, ngf=16)
    config.data.update(grey=True, image_size=32, random_flip=True, random_turn=True)
    config.noise = 2 * 25 / 255  # photos have black -1 and white 1
    config.training.update(steps=STEPS, evaluate_every=STEPS, checkpoint_every=STEPS)
    train_and_evaluate(config, RUN)

run = load_run(RUN)
low, high = run.problem.data.value_range

# %% [markdown]
# ## One photograph
#
# The portrait of Grace Hopper that comes with matplotlib; training saw nothing of it. The network
# takes pictures of any size.

# %%
with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
    picture = np.asarray(Image.open(file).convert("L"), np.float32)
picture = picture[60 : 60 + SIDE, 130 : 130 + SIDE]
clean = jnp.asarray(low + (high - low) * picture[..., None] / 255)
noisy = clean + run.sigma * jax.random.normal(jax.random.key(0), clean.shape)
posterior = pointwise.posterior_fn(run.model, run.params, run.sigma)(noisy)


def as_picture(values):
    return np.asarray(values).reshape(clean.shape[:2])


error = as_picture(posterior.mean) - clean[..., 0]
deviation = as_picture(posterior.standard_deviation())

figure, axes = plt.subplots(1, 5, figsize=(10.5, 2.3), layout="constrained")
grey = {"cmap": "gray", "vmin": low, "vmax": high}
size = {"cmap": "inferno", "vmin": 0.0, "vmax": float(np.quantile(deviation, 0.995))}
shown = {
    "clean": (clean[..., 0], grey),
    "noisy": (noisy[..., 0], grey),
    "denoised": (as_picture(posterior.mean), grey),
    "predicted deviation": (deviation, size),
    "size of the true error": (np.abs(error), size),
}
for axis, (title, (values, options)) in zip(axes, shown.items(), strict=True):
    drawn = axis.imshow(values, **options)
    axis.set_title(title)
    axis.set_axis_off()
figure.colorbar(drawn, ax=axes[3:], label="data units", extend="max")
plt.show()

# %% [markdown]
# ## Are the error bars right?
#
# Pixels are sorted by their predicted deviation, into ten groups of equal size. Where the
# prediction is right the root mean square of the true errors in each group is that deviation. The
# negative log-likelihood of the whole error, per pixel, is compared with that of one variance for
# all pixels, the best one for this picture: lower is better.

# %%
groups = np.array_split(np.argsort(deviation, axis=None), 10)
predicted = [float(np.sqrt(np.mean(deviation.ravel()[group] ** 2))) for group in groups]
realised = [float(np.sqrt(np.mean(np.asarray(error).ravel()[group] ** 2))) for group in groups]

figure, axis = plt.subplots(figsize=(4, 4), layout="constrained")
axis.plot([0, max(predicted + realised)], [0, max(predicted + realised)], color="0.7")
axis.plot(predicted, realised, "o-")
axis.set_xlabel("predicted deviation")
axis.set_ylabel("root mean square error")
plt.show()

scaled = -jnp.asarray(error).ravel() / run.sigma
constant = Diagonal(jnp.full(scaled.shape, jnp.mean(scaled**2)))
covariance = posterior.covariance.scale(1 / run.sigma**2)
for name, matrix in {"this run": covariance, "one variance for all": constant}.items():
    value = float(losses.residual_nll(scaled, matrix)) / scaled.size
    print(f"{name}: negative log-likelihood {value:.3f} per pixel")
interval = posterior.marginal_interval(0.9)
inside = np.mean((interval.lower <= clean.ravel()) & (clean.ravel() <= interval.upper))
print(f"Gaussian 90% intervals hold {inside:.1%} of the pixels")

# %% [markdown]
# ## What the clean picture could be
#
# Two draws of the posterior, and their difference: large where the denoised picture cannot be
# trusted, such as along edges, and alike in neighbours.

# %%
draws = posterior.sample(jax.random.key(1), 2)
figure, axes = plt.subplots(1, 3, figsize=(6.6, 2.5), layout="constrained")
difference = as_picture(draws[0] - draws[1])
around = {"cmap": "RdBu_r", "vmin": -2 * run.sigma, "vmax": 2 * run.sigma}
shown = {
    "one draw": (as_picture(draws[0]), grey),
    "another": (as_picture(draws[1]), grey),
    "their difference": (difference, around),
}
for axis, (title, (values, options)) in zip(axes, shown.items(), strict=True):
    axis.imshow(values, **options)
    axis.set_title(title)
    axis.set_axis_off()
plt.show()
