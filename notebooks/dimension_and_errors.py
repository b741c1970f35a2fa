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
# # Dimension, errors without the truth, and the strength of the noise
#
# This notebook reads three numbers off a second-order model, for a picture and for its parts: how
# many dimensions the data have around it, how large the error of denoising is although the clean
# picture is not known, and how strong the noise is. All come from the scores at one noisy point.
# You will see digits sorted by their dimension and where in them it lies, estimates of the error
# beside the true error, and the likelihood of the noise level of single pictures.
#
# The run is read from `runs/diffusion`, that of the page "Samples from noise, in few steps".
# If it is not there, it is made of the weights that come with the package.

# %%
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from hos_jax import load_run, pointwise, tweedie
from hos_jax.migrate import import_checkpoint
from hos_jax.uses import dimension

plt.rcParams["figure.dpi"] = 100
RUN = Path("runs/diffusion")
COUNT, MANY, AT_ONCE, SHOWN = 64, 320, 16, 8

# %%
if not RUN.is_dir():
    import_checkpoint("diffusion", RUN)

run = load_run(RUN)
data, shape = run.problem.data, run.image_shape
low, high = data.value_range
training, held_out = (
    data.to_float(images[:MANY]).reshape(-1, np.prod(shape))
    for images in (data.train, data.held_out)
)
digits, labels = held_out[:COUNT], data.held_out_labels[:COUNT]
derivatives_fn = pointwise.derivatives_fn(run)
print(f"{run.problem.config.data.name}, {run.step} steps, images of {shape}")


def batched(fn):
    """`fn(key, image, sigma)` for many images, compiled."""
    return jax.jit(jax.vmap(fn, (0, 0, None)))


def in_parts(fn, seed, images, sigma):
    """The same over flat images, so many at once."""
    keys = jax.random.split(jax.random.key(seed), len(images))
    parts = [slice(i, i + AT_ONCE) for i in range(0, len(images), AT_ONCE)]
    found = [jax.device_get(fn(keys[part], images[part], jnp.float32(sigma))) for part in parts]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)


def show(axes, images, **options):
    for axis, image in zip(axes, images, strict=False):
        values = np.reshape(image, shape)[..., 0]
        axis.imshow(values, **{"cmap": "gray", "vmin": low, "vmax": high} | options)
        axis.set(xticks=[], yticks=[])


# %% [markdown]
# ## How many dimensions a digit has
#
# The trace of the posterior covariance C, in units of $\sigma^2$, counts the directions in which
# the data vary by more than sigma, which here is the scale that is looked at. A digit can be
# turned, slanted, made thicker, and each stroke can be moved. Below are digits from the lowest to
# the highest dimension, and the diagonal of C: which pixels the dimensions belong to. The numbers
# in the maps are the dimensions of each quarter of the picture.


# %%
@batched
def around(key, image, sigma):
    return dimension.local_dimension(key, image, derivatives_fn, sigma, draws=2)


found = in_parts(around, 0, digits, 0.25)
chosen = np.argsort(found.total)[np.linspace(0, COUNT - 1, SHOWN).round().astype(int)]
rows, columns = np.indices(shape[:2])
middle = shape[0] / 2, shape[1] / 2
quarters = (2 * (rows >= middle[0]) + (columns >= middle[1])).ravel()

figure, axes = plt.subplots(2, SHOWN, figsize=(12, 3.6), layout="constrained")
show(axes[0], digits[chosen])
show(axes[1], found.values[chosen], cmap="magma", vmin=0.0, vmax=float(found.values.max()))
for above, below, index in zip(*axes, chosen, strict=True):
    above.set_title(f"{found.total[index]:.1f}")
    shares = dimension.over_regions(found.values[index], jnp.asarray(quarters), 4)
    for quarter, share in enumerate(shares):
        place = 0.03 + 0.94 * (quarter % 2), 0.03 + 0.94 * (quarter < 2)
        style = {"ha": "right" if quarter % 2 else "left", "va": "top" if quarter < 2 else "bottom"}
        below.text(*place, f"{share:.1f}", color="white", transform=below.transAxes, **style)
    below.axhline(middle[0] - 0.5, color="0.6", linewidth=0.7)
    below.axvline(middle[1] - 0.5, color="0.6", linewidth=0.7)
plt.show()

for label in range(10):
    if (labels == label).any():
        mean = found.total[labels == label].mean()
        print(f"digit {label}: {mean:.1f} dimensions on average of {(labels == label).sum()}")

# %% [markdown]
# There is not one number for a digit: the finer one looks, the more directions count. The curves do
# not stay level anywhere, as they would for data on a smooth surface of a fixed dimension.

# %%
scales = np.geomspace(0.1, 2.0, 6)
few = digits[chosen[[0, SHOWN // 2, -1]]]
curves = np.stack([in_parts(around, 1, few, scale).total for scale in scales])
figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
for curve, index in zip(curves.T, chosen[[0, SHOWN // 2, -1]], strict=True):
    axis.loglog(scales, curve, "o-", label=f"a {labels[index]}")
axis.set_xlabel("sigma")
axis.set_ylabel("dimension")
axis.legend()
plt.show()

# %% [markdown]
# ## How large is the error, without the truth?
#
# Two estimates of the squared error of a denoised picture. The model's own one is
# $\sigma^2 \mathrm{tr}\, C$. Stein's (SURE) needs no trust in the model's idea of the data, but in
# the derivative of its score. C and the derivative of the learned $s_1$ need not agree, so C is
# multiplied by the ratio of the two, measured on training digits. It is above 1 here: C of these
# weights is too small at this sigma, as its estimate of the error below is.

# %%
SIGMA = 0.5


@batched
def confirmed_and_stated(key, image, sigma):
    return dimension.confirmed_and_stated(key, image, derivatives_fn, sigma)


@batched
def errors(key, image, sigma):
    """The true squared error, and both estimates, per pixel."""
    noisy = image + sigma * jax.random.normal(key, image.shape)
    score1, score2 = derivatives_fn(noisy, sigma)
    covariance = tweedie.scaled_covariance(score2, sigma)
    return {
        "true": jnp.mean(jnp.square(noisy + sigma**2 * score1 - image)),
        "own estimate": sigma**2 * jnp.mean(covariance.diagonal()),
        "SURE": jnp.mean(dimension.sure_map(score1, covariance.scale(ratio), sigma)),
    }


both = in_parts(confirmed_and_stated, 2, training, SIGMA)
ratio = float(both.confirmed.mean() / both.stated.mean())
print(f"ratio {ratio:.3f}")
measured = in_parts(errors, 3, held_out, SIGMA)

figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
for axis, name in zip(axes, ("own estimate", "SURE"), strict=True):
    axis.plot(measured[name], measured["true"], "o", alpha=0.4, markersize=4)
    # The line must not stretch the axes to its end at zero.
    axis.set(xlim=axis.get_xlim(), ylim=axis.get_ylim())
    axis.axline((0, 0), slope=1, color="0.5", label="equal")
    axis.set_xlabel(f"{name}, per pixel")
    axis.legend()
axes[0].set_ylabel("true squared error, per pixel")
plt.show()

for name in ("true", "own estimate", "SURE"):
    values = measured[name]
    error = values.std(ddof=1) / len(values) ** 0.5
    correlation = np.corrcoef(values, measured["true"])[0, 1]
    print(f"{name:<13} mean {values.mean():.4f}, standard error {error:.4f}, ", end="")
    print(f"correlation with the truth {correlation:.2f}")

# %% [markdown]
# For a single picture of the kind that the model learned from, take its own estimate. SURE is right
# on average, of pictures of other kinds too, but for one picture it scatters with the noise: the
# points on the right lie far from the line, and some are below zero.
#
# ## How strong is the noise?
#
# How fast the log density changes with the noise level is known from both scores. Integrated over a
# few levels it is the log likelihood of the level. Below are pictures of one digit with more and
# more noise, and the likelihood of each, up to a constant; the dashed lines are the true levels.


# %%
@batched
def level(key, image, sigma):
    noisy = image + sigma * jax.random.normal(key, image.shape)
    return noisy, dimension.noise_level(noisy, derivatives_fn, jnp.asarray(levels))


model = run.problem.config.model
levels = np.geomspace(model.smallest_noise, model.largest_noise, 12)
true_levels = (0.1, 0.25, 0.5, 1.0)
results = [in_parts(level, 4 + n, digits[:1], sigma) for n, sigma in enumerate(true_levels)]

figure, axes = plt.subplots(1, 4, figsize=(10, 3), layout="constrained")
show(axes, [noisy[0] for noisy, _ in results])
for axis, sigma, (_, result) in zip(axes, true_levels, results, strict=True):
    axis.set_title(f"true {sigma}, found {result.sigma[0]:.3f}", fontsize=12)
plt.show()

figure, axis = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
for sigma, (_, result) in zip(true_levels, results, strict=True):
    values = result.log_likelihood[0] - result.log_likelihood[0].max()
    (line,) = axis.semilogx(levels, values / digits.shape[1], "o-", label=f"true sigma {sigma}")
    axis.axvline(sigma, color=line.get_color(), linestyle="--")
axis.set(ylim=(-1, 0.05), xlabel="assumed sigma", ylabel="log likelihood per pixel")
figure.legend(loc="outside right upper")
plt.show()
