r"""Inpainting, deblurring, super-resolution of held-out images: posterior samples by many laws.

    hos-jax --runner LowRankHybridRunner --config diffusion_mnist5k --doc diffusion --ni
    python benchmarks/inverse_problem.py --run runs/diffusion [--json PATH] [--figure PATH]

Needs a run of many noise levels. The same images, measurements and random numbers for all methods,
all of them down the same noise levels:

* moment matched: x is the guided mean, with S from the covariance K of s2 and the Jacobian of the
  denoiser by automatic differentiation.
* plain guidance: the same with S from r^2 I, the usual heuristic (pseudoinverse guidance).
* forward only: moment matched with K / sigma^2 for the Jacobian: no backward pass.
* sampled: `inverse.sample_posterior`, which draws x from its Gaussian in place of the mean.
* dps: a step of length `--dps_step` along J^T A^T (b - A m), J the Jacobian of the denoiser by
  automatic differentiation, in place of a solve (Chung et al., "Diffusion Posterior Sampling for
  General Noisy Inverse Problems", 2023).
* products: moment matched with sigma^2 J for K, and S^-1 by `--products` conjugate gradients, each
  with one product with J^T (Rozet et al., "Learning Diffusion Priors from Observations by
  Expectation Maximization", 2024).
* row sums: the same with S the diagonal of row sums of t^2 I + sigma^2 A J A^T, from one product
  (Boys et al., "Tweedie Moment Projected Diffusions for Inverse Problems", 2023).

A method has one pass for an evaluation of the networks and one for each product with J^T. With
`--passes` each goes down as many levels as these passes allow, in place of `--levels`; of several
numbers each gives its rows. Rows in the file of `--json` are kept.

Problems: inpaint (a square of half the image's side in its middle is not seen), scatter (9 in 10
pixels are not seen), deblur (a Gaussian blur of 1.5 pixels), double (means of 2 x 2 pixels are
seen); all with measurement noise 0.05.

MSE: of the samples' mean; MSE hidden: over the values that are not seen; CRPS: mean over values of
E|X - x| - E|X - X'| / 2, which scores mean and spread together (smaller is better); coverage:
how often a value lies between the k-th smallest and the k-th largest of the S samples, which are
to hold it in 1 - 2 k / (S + 1) of all cases, 0.9 here, whatever the law. Coverage is over values
that are not seen (deblur: all) where the training images have a standard deviation above 0.1: a
margin that is always black says nothing. Standard errors are over images.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.scipy.sparse.linalg import cg
from measure import Rows

from hos_jax import pointwise
from hos_jax.errors import UserError
from hos_jax.evaluation import figures
from hos_jax.noise import geometric_sigmas
from hos_jax.training.runs import load_run
from hos_jax.uncertainty import inverse

NOISE_STD = 0.05
METHODS = (
    *("moment matched", "plain guidance", "forward only", "sampled"),
    *("dps", "products", "row sums"),
)


def inpaint(shape):
    """The image without the square in its middle, and what is hidden, (H, W, C)."""
    height, width, _ = shape
    hidden = np.zeros(shape, bool)
    hidden[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
    return _seen(hidden)


def scatter(shape):
    """One pixel in ten."""
    pixels = np.random.default_rng(0).random(shape[:2]) < 0.9
    return _seen(np.broadcast_to(pixels[..., None], shape))


def _seen(hidden):
    places = np.flatnonzero(~hidden)
    return (lambda point: point[places]), hidden.ravel()


def deblur(shape, width=1.5):
    """A Gaussian blur that reflects nothing at the border; no value is hidden on its own."""
    offsets = jnp.arange(-4.0, 5.0)
    taps = jnp.exp(-0.5 * jnp.square(offsets / width))
    kernel = jnp.outer(taps, taps)[:, :, None, None] / jnp.sum(taps) ** 2

    def forward(point):
        channels = jnp.moveaxis(point.reshape(shape), -1, 0)[..., None]
        blurred = jax.lax.conv_general_dilated(
            channels, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.moveaxis(blurred[..., 0], 0, -1).ravel()

    return forward, np.ones(int(np.prod(shape)), bool)


def double(shape):
    """Half the resolution: the mean of each square of 2 x 2 pixels; no value is hidden."""
    height, width, channels = shape

    def forward(point):
        squares = point.reshape(height // 2, 2, width // 2, 2, channels)
        return jnp.mean(squares, axis=(1, 3)).ravel()

    return forward, np.ones(int(np.prod(shape)), bool)


PROBLEMS = {"inpaint": inpaint, "scatter": scatter, "deblur": deblur, "double": double}
SHOWN_AS = {
    "inpaint": "inpainting",
    "scatter": "scattered pixels",
    "deblur": "deblurring",
    "double": "super-resolution",
}


def passes_of(method, options):
    """Passes of one level."""
    known = {"moment matched": 2, "plain guidance": 2, "dps": 2, "row sums": 3}
    return 2 + options.products if method == "products" else known.get(method, 1)


def by_jacobian(mean_fn, method, noisy, sigma, observation, options):
    """x by methods that know the denoiser and its Jacobian alone."""
    mean, vjp = jax.vjp(mean_fn, noisy)
    residual = observation.values - observation.forward(mean)

    def back(vector):
        """J^T A^T v."""
        return vjp(observation.adjoint(vector, mean))[0]

    if method == "dps":
        return mean + options.dps_step * back(residual) / jnp.linalg.norm(residual)

    def product(vector):
        """S v."""
        return NOISE_STD**2 * vector + sigma**2 * observation.linear(back(vector))

    if method == "row sums":
        rows = product(jnp.ones_like(residual))
        return mean + sigma**2 * back(residual / jnp.maximum(rows, NOISE_STD**2))
    # J^T of a network is not quite symmetric; a few iterations do not mind.
    solution, _ = cg(product, residual, tol=0.0, maxiter=options.products)
    return mean + sigma**2 * back(solution)


def make_draw_fn(run, method, observation, options):
    """`(key, y, sigma) -> x` of a method, with the networks of a run."""
    moments, data_std = pointwise.posterior_fn(run), run.problem.config.model.data_std

    def guided(choose, noisy, sigma):
        """Tweedie's mean of the conditional score, m + sigma^2 J^T A^T S^-1 (b - A m)."""

        def mean_and_posterior(noisy):
            found = moments(noisy, sigma)
            return found.mean, choose(found, sigma)

        mean, transposed, posterior = jax.vjp(mean_and_posterior, noisy, has_aux=True)
        return mean + sigma**2 * transposed(inverse.guidance(posterior, observation))[0]

    def heuristic(found, sigma):
        return inverse.isotropic(found.mean, sigma, data_std)

    functions = {
        "moment matched": lambda _, y, s: guided(lambda found, _: found, y, s),
        "plain guidance": lambda _, y, s: guided(heuristic, y, s),
        "forward only": lambda _, y, s: inverse.conditional_mean(moments(y, s), observation),
        "sampled": lambda key, y, s: inverse.conditional_sample(key, moments(y, s), observation),
    }
    if method in functions:
        return functions[method]
    return lambda _, y, s: by_jacobian(
        lambda noisy: moments(noisy, s).mean, method, y, s, observation, options
    )


def draw(run, method, forward, values, levels, options):
    """Samples (images, S, D) given the measurements (images, M), and the seconds they took."""
    model, data = run.problem.config.model, run.problem.data
    sigmas = geometric_sigmas(model.largest_noise, model.smallest_noise, levels)
    centre, dim = sum(data.value_range) / 2, int(np.prod(data.image_shape))

    def one(key, values):
        start_key, key = jax.random.split(key)
        start = centre + sigmas[0] * jax.random.normal(start_key, (dim,))
        observation = inverse.Observation(values, NOISE_STD, forward)
        return inverse.descend(key, make_draw_fn(run, method, observation, options), start, sigmas)

    of_image = jax.jit(jax.vmap(one, (0, None)))
    keys = jax.random.split(jax.random.key(1), (len(values), options.samples))
    compiled = of_image.lower(keys[0], values[0]).compile()
    begun = time.perf_counter()
    samples = [np.asarray(compiled(*each)) for each in zip(keys, values, strict=True)]
    return np.stack(samples), time.perf_counter() - begun


def scores(samples, clean, hidden, varied):
    """Averages over images and their standard errors; see the top of the file."""
    count = samples.shape[1]
    ordered = np.sort(samples, axis=1)
    edge = round(0.05 * (count + 1))
    inside = (ordered[:, edge - 1] <= clean) & (clean <= ordered[:, count - edge])
    squares = np.square(samples.mean(axis=1) - clean)
    weights = 2 * np.arange(1, count + 1) - count - 1
    apart = np.einsum("nsd,s->nd", ordered, weights) / (count * (count - 1))
    crps = np.abs(samples - clean[:, None]).mean(axis=1) - apart
    per_image = {
        "mse": squares.mean(axis=1),
        "mse_hidden": squares[:, hidden].mean(axis=1),
        "crps": crps[:, hidden].mean(axis=1),
        "coverage_90": inside[:, hidden & varied].mean(axis=1),
    }
    size = np.sqrt(len(clean))
    means = {name: float(values.mean()) for name, values in per_image.items()}
    errors = {name: float(values.std(ddof=1) / size) for name, values in per_image.items()}
    return means | {"standard_error": errors}


def shown(forward, values, shape):
    """Measurements as images (images, H, W, C): in each pixel the mean of those that see it,
    A^T b / A^T 1, and 0 in what is not seen."""
    observation = inverse.Observation(values[0], NOISE_STD, forward)
    like = jnp.zeros(int(np.prod(shape)))
    one = functools.partial(observation.adjoint, like=like)
    if values.shape[1] == like.size:
        return np.asarray(values).reshape(-1, *shape)
    weight = one(jnp.ones_like(values[0]))
    back = jax.vmap(one)(values) / jnp.where(weight > 0, weight, 1.0)
    return np.asarray(back).reshape(-1, *shape)


def draw_figure(clean, pictures, value_range):
    """Clean and measured image, and for every method the samples' mean and deviation."""
    methods = [name for name in next(iter(pictures.values())) if name != "observed"]
    titles = ["clean", "observed"]
    titles += [f"{what},\n{method}" for method in methods for what in ("mean", "deviation")]
    each = min(2, len(clean))
    rows = len(pictures) * each
    figure, axes = plt.subplots(
        rows, len(titles), figsize=(1.4 * len(titles), 1.4 * rows + 0.5), layout="constrained"
    )
    low, high = value_range
    grey = {"cmap": "gray", "vmin": low, "vmax": high}
    for row, (name, index) in enumerate(itertools.product(pictures, range(each))):
        problem = pictures[name]
        images = [(clean[index], grey), (problem["observed"][index], grey)]
        for method in methods:
            samples = problem[method][index].reshape(-1, *clean.shape[1:])
            images += [(samples.mean(axis=0), grey)]
            images += [(samples.std(axis=0), {"cmap": "magma", "vmin": 0.0, "vmax": 0.5})]
        for axis, (image, style) in zip(axes[row], images, strict=True):
            axis.imshow(image.mean(axis=-1), interpolation="nearest", **style)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axes[row, 0].set_ylabel(SHOWN_AS[name], fontsize=9)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    return figure


def compare(options):
    run = load_run(options.run)
    config, data = run.problem.config, run.problem.data
    if config.model.smallest_noise is None:
        raise UserError(f"{options.run} has one noise level: train with --config diffusion_mnist5k")
    if run.problem.model.head is None:
        raise UserError(f"{options.run} has no second-order model: choose another runner")
    shape = data.image_shape
    clean = data.to_float(getattr(data, options.split)[: options.images])
    clean = np.asarray(clean).reshape(len(clean), -1)
    training = data.to_float(data.train).reshape(len(data.train), -1)
    varied = np.asarray(training).std(axis=0) > 0.1
    settings = {"images": len(clean), "samples": options.samples, "split": options.split}
    settings |= {"dps_step": options.dps_step, "products": options.products}
    rows, pictures = Rows(options.json, ("problem", "method", "levels"), settings), {}
    for name in options.problems:
        forward, hidden = PROBLEMS[name](shape)
        exact = jax.vmap(forward)(jnp.asarray(clean))
        noise = jax.random.normal(jax.random.key(0), exact.shape)
        values = exact + NOISE_STD * noise
        pictures[name] = {"observed": shown(forward, values, shape)}
        for passes, method in itertools.product(options.passes, options.methods):
            each = passes_of(method, options)
            levels = max(passes // each, 2) if passes else options.levels
            row = rows.find(problem=name, method=method, levels=levels)
            if row is None or options.figure:
                samples, seconds = draw(run, method, forward, values, levels, options)
                pictures[name][method] = samples
                row = {"problem": name, "method": method, "levels": levels, "passes": levels * each}
                row |= scores(samples, clean, hidden, varied)
                row = rows.add(row | {"seconds_per_sample": seconds / samples[:, :, 0].size})
            print(_line(row), flush=True)
    return clean.reshape(-1, *shape), pictures, data.value_range


COLUMNS = ("mse", "mse_hidden", "crps", "coverage_90")


def _line(row):
    spread = row["standard_error"]
    cells = "".join(f"{row[name]:>12.4f} ({spread[name]:.4f})" for name in COLUMNS)
    seconds = row["seconds_per_sample"]
    return f"{row['problem']:<10}{row['method']:<16}{row['passes']:>6}{cells}{seconds:>12.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--samples", type=int, default=39)
    parser.add_argument("--levels", type=int, default=30)
    parser.add_argument(
        "--passes",
        type=int,
        nargs="+",
        default=[0],
        help="of each sample, for all methods",
    )
    parser.add_argument(
        "--dps_step", type=float, default=10.0, help="data units; chosen with --split train"
    )
    parser.add_argument("--products", type=int, default=3, help="conjugate gradients of `products`")
    parser.add_argument("--split", choices=("held_out", "train"), default="held_out")
    parser.add_argument("--quick", action="store_true", help="2 images, 19 samples, 8 levels")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.images, options.samples, options.levels = 2, 19, 8
    if (options.samples + 1) % 20 or options.images < 2:
        parser.error("--samples must be 20 k - 1 (19, 39, ...) and --images at least 2")
    titles = "".join(f"{name:>21}" for name in COLUMNS)
    print(f"{'problem':<10}{'method':<16}{'passes':>6}{titles}{'s / sample':>12}")
    try:
        clean, pictures, value_range = compare(options)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    if options.figure:
        figures.save(draw_figure(clean, pictures, value_range), options.figure)


if __name__ == "__main__":
    main()
