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
# # What a diagonal second-order model knows about colour pictures
#
# This notebook shows how sure a model is of each value of a denoised colour picture, and how far it
# can be trusted. A model of $s_1$ and of the diagonal of $s_2$ gives, in one forward pass, the
# denoised image and the variance of every value, three of them for each pixel. You will see its
# maps, how well they agree with the errors on held-out pictures, and what the diagonal leaves out:
# the leading directions and the rows of the posterior covariance, from products with the Jacobian
# of $s_1$.
#
# The run is read from `runs/cifar10_diagonal`. If it is not there, a small U-Net is trained first,
# some minutes on two CPU cores. It is trained on CIFAR-10 where that was prepared
# (`--config.data.name=cifar10` downloads it once), and otherwise on 32 x 32 crops of the
# photographs that come with packages; the line below says which. For the published setting train
# with `--config unet_cifar10.yml --runner DoubleDiagonalHybridRunner`, and put the folder of that
# run in the place of this one.

# %%
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from hos_jax import UserError, autodiff, load_run, pointwise, train_and_evaluate
from hos_jax.config import apply_runner, named_config
from hos_jax.data import load
from hos_jax.evaluation import figures
from hos_jax.evaluation.evaluate import panel
from hos_jax.evaluation.held_out import held_out_examples, held_out_metrics

plt.ion()  # or the first figure, which pyplot did not make, would not be shown
RUN = Path("runs/cifar10_diagonal")
STEPS = 300
SHOWN, DIRECTIONS, PIXELS, MANY = 5, 5, 3, 100

# %%
if not RUN.is_dir():
    logging.disable(logging.INFO)
    try:
        load("cifar10")
        data = "cifar10"
    except UserError as error:
        data = "photos"
        print(error)
    config = named_config("demo")
    config.model.head = "diagonal"
    apply_runner(config, "DoubleDiagonalHybridRunner")
    config.data.name = data
    config.noise = 0.5
    config.training.steps = STEPS
    config.training.evaluate_every = config.training.checkpoint_every = STEPS
    train_and_evaluate(config, RUN)

run = load_run(RUN)
problem, params, sigma = run.problem, run.params, run.sigma
shape, value_range = problem.data.image_shape, problem.data.value_range
print(f"{problem.config.data.name}, sigma {sigma:g}, {run.step} steps")

# %% [markdown]
# ## What the model says of a noisy image
# From left to right: the clean image, the noisy one, the denoised one, the standard deviation that
# the model predicts for each value, and the error that it really made. The denoised image is the
# posterior mean, $y + \sigma^2 s_1$; the variance of a value is
# $\sigma^2 (1 + \sigma^2 s_{2,ii})$.

# %%
examples = held_out_examples(problem, params, 50, DIRECTIONS)
# Many crops of photographs are sky and walls: of the first fifty those of most contrast.
contrast = examples.clean.reshape(len(examples.clean), -1).std(axis=1)
chosen = np.argsort(-contrast)[:SHOWN]
examples = jax.tree.map(lambda leaf: leaf[chosen], examples)
panel(problem, examples)

# %% [markdown]
# ## Can the map be trusted?
# Yes, as far as the points of the plot lie on the dashed line. The pixels of all held-out images
# are grouped by the variance that was predicted for them, and the mean of their squared error is
# drawn against the prediction. The numbers say which share of the errors is inside its interval.

# %%
measured = held_out_metrics(problem, params)
print(f"calibration {measured['calibration']:.3f} (1 is right)")
print(f"NLL per dimension {measured['nll_per_dim']:.3f}")
for level in (50, 80, 90, 95):
    print(f"{level}% intervals cover {measured[f'coverage_{level}']:.1%}, ", end="")
    print(f"recalibrated {measured['recalibrated'][f'coverage_{level}']:.1%}")

# %%
bins = [b for b in measured["reliability"] if b["share"] > 1e-3]
predicted = np.array([b["predicted"] for b in bins])
realised = np.array([b["realised"] for b in bins])
_, axis = plt.subplots(figsize=(4.2, 4), layout="constrained")
axis.loglog(predicted, realised, "o-", label="pixels of one bin")
axis.loglog(predicted, predicted, "--", color="gray", label="perfect")
axis.set_xlabel("predicted variance / sigma^2")
axis.set_ylabel("mean squared error / sigma^2")
for side in (axis.xaxis, axis.yaxis):
    side.set_major_locator(LogLocator(subs=(1, 2, 5)))
    side.set_major_formatter(StrMethodFormatter("{x:g}"))
    side.set_minor_formatter(NullFormatter())
axis.legend()
axis.grid(alpha=0.3)

# %% [markdown]
# ## What the diagonal leaves out: directions
# A diagonal says nothing about pixels that move together. The Jacobian of $s_1$ does: its symmetric
# part is $s_2$. From 56 products with it come the five directions of largest posterior variance,
# without a matrix of 3072 x 3072. Pixels of one colour move together, red against blue.

# %%
score_fn = pointwise.score_fn(run)
noisy = examples.denoised.noisy


@jax.jit
def leading(noisy, key):
    pairs = autodiff.posterior_eigenpairs(key, score_fn, noisy, sigma, count=DIRECTIONS)
    return jnp.sqrt(jnp.maximum(pairs.eigenvalues, 0.0)), pairs.eigenvectors.T


found = [leading(each, jax.random.key(i)) for i, each in enumerate(noisy)]
deviations = np.stack([np.asarray(pair[0]) for pair in found])
directions = np.stack([np.asarray(pair[1]).reshape(DIRECTIONS, *shape) for pair in found])
as_images = [np.asarray(a).reshape(-1, *shape) for a in (noisy, examples.denoised.mean)]
print("eigenvalues / sigma^2:", (deviations[0] / sigma) ** 2)
figures.posterior_directions(*as_images, directions, deviations, value_range)

# %% [markdown]
# ## What the diagonal leaves out: rows
# The posterior covariance of a marked pixel with all others takes one product for each pixel.

# %%
deviation = np.asarray(examples.denoised.standard_deviation).reshape(-1, *shape)
pixels = np.stack([figures.uncertain_pixels(image, PIXELS) for image in deviation])


product_fn = autodiff.posterior_covariance_product_fn(score_fn, sigma)


@jax.jit
def covariance_row(noisy, pixel):
    return product_fn(noisy, jnp.zeros_like(noisy).at[pixel].set(1.0))


rows = np.stack(
    [[covariance_row(y, p) for p in some] for y, some in zip(noisy, pixels, strict=True)]
)
rows = rows.reshape(len(noisy), PIXELS, *shape)
figures.covariance_rows(as_images[1], pixels, rows, value_range)

# %% [markdown]
# Last, the variance of the marked pixels in both ways: learned directly, and by autodiff of $s_1$,
# which nothing keeps from being negative. Beside them is the squared error that was really made, of
# which a single one says little; so below are means over the marked pixels of more pictures.


# %%
@jax.jit
def autodiff_variance(noisy, pixel):
    return covariance_row(noisy, pixel)[pixel]


def at_marked(examples):
    """Both variances and the squared error at the marked pixels, in units of sigma^2."""
    mean = np.asarray(examples.denoised.mean)
    error = mean - np.asarray(examples.clean).reshape(mean.shape)
    deviation = np.asarray(examples.denoised.standard_deviation)
    images = deviation.reshape(-1, *shape)
    pixels = np.stack([figures.uncertain_pixels(image, PIXELS) for image in images])
    pairs = zip(examples.denoised.noisy, pixels, strict=True)
    by_autodiff = np.array([[autodiff_variance(y, p) for p in some] for y, some in pairs])
    found = {
        "direct": np.take_along_axis(deviation**2, pixels, axis=1),
        "autodiff": by_autodiff,
        "squared error": np.take_along_axis(error**2, pixels, axis=1),
    }
    return {name: values / sigma**2 for name, values in found.items()}


shown = at_marked(examples)
for index in range(len(noisy)):
    parts = (f"{name} {values[index].round(3)}" for name, values in shown.items())
    print(f"picture {index}: " + ", ".join(parts))

for name, values in at_marked(held_out_examples(problem, params, MANY, DIRECTIONS)).items():
    spread = values.mean(axis=1).std(ddof=1) / len(values) ** 0.5
    print(f"{name}: mean {values.mean():.3f} ({spread:.3f}) at {values.size} pixels")

# %% [markdown]
# Over many pixels both agree with the squared error, as far as the standard errors in brackets
# tell. At single pixels they differ, and a single squared error cannot say which is right. (The
# pixels were marked because the direct variance is largest there, which favours those where it came
# out too large.)
