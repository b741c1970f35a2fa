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
# # Which pixel to look at next
#
# This notebook looks at a digit pixel by pixel, and chooses each time the pixels that say most
# about the rest. What is needed for that is the covariance of the digit given what was seen so far;
# a second-order model of many noise levels gives it. You will see which pixels are chosen, the mean
# and the deviations that are believed after so many, the whole search as an animation, and the
# error beside that of pixels chosen at random or in a fixed order.
#
# The run is read from `runs/diffusion`, that of the page "Samples from noise, in few steps".
# If it is not there, it is made of the weights that come with the package.

# %%
import base64
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.ticker import LogLocator

from hos_jax import load_run, noise, pointwise
from hos_jax.linops import Dense
from hos_jax.migrate import import_checkpoint
from hos_jax.uses import measure_next

plt.rcParams["figure.dpi"] = 100
RUN = Path("runs/diffusion")
DIGITS, CHAINS, LEVELS = 3, 8, 6
NOISE_STD = 0.05  # of what is measured

# %%
if not RUN.is_dir():
    import_checkpoint("diffusion", RUN)

run = load_run(RUN)
data, shape = run.problem.data, run.image_shape
low, high = data.value_range
dim = int(np.prod(shape))
training = jnp.asarray(data.to_float(data.train).reshape(-1, dim))
digits = jnp.asarray(data.to_float(data.held_out[:DIGITS]).reshape(-1, dim))
# So many pixels in each round, a tenth of all in the end.
few = max(1, dim // 196)
rounds = [few] * 4 + [2 * few] * 8
print(f"{run.problem.config.data.name}, {run.step} steps, {dim} values, {sum(rounds)} are measured")

# %% [markdown]
# ## What is believed
#
# Chains run from noise down to a level that is not small, and hold to what was seen. At their ends
# the model gives a mean and a covariance each. Their average, and the spread of the means, is the
# belief.

# %%
posterior_fn = pointwise.posterior_fn(run)
centre = training.mean(axis=0)
sigmas = noise.karras_sigmas(run.problem.config.model.largest_noise, 0.3, LEVELS)


@jax.jit
def believe(key, seen):
    def end(key):
        start_key, key = jax.random.split(key)
        start = centre + sigmas[0] * jax.random.normal(start_key, (dim,))
        return measure_next.chain(key, posterior_fn, seen, start, sigmas)

    return measure_next.belief_of_chains(jax.vmap(end)(jax.random.split(key, CHAINS)), seen)


# %% [markdown]
# ## Who chooses
#
# By the covariance: each choice takes most from the trace of what is believed, given the choices
# before it. Two others for comparison: at random, and in a fixed order, the best one for Gaussian
# data with the covariance of the training images, which looks at no digit.

# %%
covariance = Dense(jnp.cov(training.T))
order = measure_next.choose(covariance.matvec, dim, NOISE_STD, sum(rounds)).places


def at_random(key, belief, seen, count):
    scores = jnp.where(seen.unseen(dim), jax.random.uniform(key, (dim,)), -1.0)
    return jax.lax.top_k(scores, count)[1]


def in_order(key, belief, seen, count):
    begin = int(seen.valid.sum())
    return order[begin : begin + count]


choosers = {
    "by the covariance": measure_next.greedy,
    "in a fixed order": in_order,
    "at random": at_random,
}
variances = jax.jit(measure_next.Belief.diagonal)


def look_at(number, choose_fn):
    """What was seen of a digit; means and deviations before each round and after the last."""
    key = jax.random.fold_in(jax.random.key(0), number)
    measured = digits[number] + NOISE_STD * jax.random.normal(jax.random.key(number), (dim,))
    deviations = []

    def belief_fn(key, seen):
        belief = believe(key, seen)
        deviations.append(np.sqrt(variances(belief)))
        return belief

    found = measure_next.reveal(
        key,
        belief_fn,
        lambda places: measured[places],
        NOISE_STD,
        rounds,
        choose_fn=choose_fn,
        room=sum(rounds),
    )
    return found, np.stack(deviations)


results = {
    name: [look_at(number, choose_fn) for number in range(DIGITS)]
    for name, choose_fn in choosers.items()
}

# %% [markdown]
# ## One digit
#
# After so many pixels: what was seen, with what was not seen in blue; the mean of what is believed;
# the deviation of each pixel, brighter where it is larger; and the mean after as many pixels at
# random. On the right is the digit itself.

# %%
counts = np.concatenate([[0], np.cumsum(rounds)])


def draw_seen(axis, found, count):
    picture = np.full(dim, np.nan)
    picture[np.asarray(found.seen.places[:count])] = found.seen.values[:count]
    axis.set_facecolor("tab:blue")
    axis.imshow(picture.reshape(shape)[..., 0], **GREY)


def draw(axis, values, options):
    axis.imshow(np.reshape(values, shape)[..., 0], **options)


def bare(axes):
    for axis in np.ravel(axes):
        axis.set(xticks=[], yticks=[])


chosen, deviations = results["by the covariance"][0]
randomly, _ = results["at random"][0]
GREY = {"cmap": "gray", "vmin": low, "vmax": high}
WIDTH = {"cmap": "magma", "vmin": 0.0, "vmax": float(deviations.max())}
shown = range(0, len(counts), 2)
figure, axes = plt.subplots(4, len(shown) + 1, figsize=(11, 5.8), layout="constrained")
for column, index in zip(axes.T, shown, strict=False):
    column[0].set_title(f"{counts[index]} pixels", fontsize=12)
    draw_seen(column[0], chosen, counts[index])
    draw(column[1], chosen.means[index], GREY)
    draw(column[2], deviations[index], WIDTH)
    draw(column[3], randomly.means[index], GREY)
draw(axes[1, -1], digits[0], GREY)
axes[1, -1].set_title("the digit", fontsize=12)
for label, axis in zip(("seen", "mean", "deviation", "mean,\nat random"), axes[:, 0], strict=True):
    axis.set_ylabel(label, fontsize=12)
bare(axes)
for axis in axes[[0, 2, 3], -1]:
    axis.set_axis_off()
plt.show()

# %% [markdown]
# The same round by round, as an animation.


# %%
class Gif:
    """A moving picture that a notebook shows."""

    def __init__(self, path):
        self.data = base64.b64encode(path.read_bytes()).decode()

    def _repr_html_(self):
        return f'<img alt="animation" src="data:image/gif;base64,{self.data}">'


FILE = RUN.parent / "measure_next.gif"
figure, axes = plt.subplots(1, 3, figsize=(8, 3), layout="constrained")
writer = PillowWriter(fps=2)
with writer.saving(figure, FILE, dpi=60):
    for index in [*range(len(counts)), *[len(counts) - 1] * 3]:
        for axis in axes:
            axis.clear()
        draw_seen(axes[0], chosen, counts[index])
        draw(axes[1], chosen.means[index], GREY)
        draw(axes[2], deviations[index], WIDTH)
        for axis, title in zip(axes, (f"{counts[index]} pixels", "mean", "deviation"), strict=True):
            axis.set_title(title)
        bare(axes)
        writer.grab_frame()
plt.close(figure)
Gif(FILE)

# %% [markdown]
# ## The error, by who chooses
#
# The mean squared error of the mean, per pixel, over a few held-out digits: so few that small
# differences mean nothing. The dashed line is what is believed of it where the covariance chooses,
# the mean of the variances. The numbers have standard errors in brackets.

# %%
figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
for name, of_digits in results.items():
    errors = np.stack(
        [
            np.mean(np.square(found.means - digit[None]), axis=1)
            for (found, _), digit in zip(of_digits, digits, strict=True)
        ]
    )
    (line,) = axis.semilogy(counts, errors.mean(axis=0), "o-", label=name)
    if name == "by the covariance":
        expected = np.mean([found.expected for found, _ in of_digits], axis=0)
        axis.semilogy(counts, expected, "--", color=line.get_color(), label="the same, believed")
    middle = len(counts) // 2
    print(f"{name:<18}", end="")
    for index in (middle, -1):
        spread = errors[:, index].std(ddof=1) / DIGITS**0.5
        print(f"  {counts[index]} pixels: {errors[:, index].mean():.4f} ({spread:.4f})", end="")
    print()
axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
axis.yaxis.set_major_formatter("{x:.2g}")
axis.yaxis.set_minor_formatter("{x:.2g}")
axis.set_xlabel("pixels seen")
axis.set_ylabel("mean squared error")
axis.legend()
plt.show()

# %% [markdown]
# The fixed order is hard to beat while little was seen, and may be ahead: much of what can be
# gained over chance is not to look at the margin, which is black in every digit. Only the
# covariance follows the digit at hand, which counts late in the search if at all. The page "Choose
# what to measure next" has numbers over more digits.
