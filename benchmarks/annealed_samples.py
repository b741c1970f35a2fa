r"""Samples from noise, judged by a classifier: are they digits, and are all classes among them?

    python main.py --runner DoubleDiagonalHybridRunner --config annealed_mnist5k --doc annealed --ni
    python benchmarks/annealed_samples.py --run runs/annealed [--json PATH] [--figure PATH]

Needs a run of many noise levels on images with classes. The samples are drawn as `--test` draws
them, with the sampler of the run's config; the classifier is trained here, on the same training
images. Beside them the same figures of as many held-out images: confidence (mean, standard error),
the share of images below 0.5, how often each class occurs.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from classify import TrainedClassifier, train_classifier

from hos_jax.evaluation import figures
from hos_jax.evaluation.generate import draw_samples
from hos_jax.files import write_atomically
from hos_jax.training.runs import load_run

SHOWN = 100


def judge(classifier: TrainedClassifier, images: np.ndarray) -> dict:
    """Confidence of the classifier and number of images in each class."""
    verdict = classifier.judge(images)
    return {
        "images": len(images),
        "confidence": float(np.mean(verdict.confidence)),
        "confidence_error": float(np.std(verdict.confidence, ddof=1) / np.sqrt(len(images))),
        "below_half": float(np.mean(verdict.confidence < 0.5)),
        "classes": np.bincount(verdict.classes, minlength=classifier.classes).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path, help=f"a grid of the first {SHOWN} samples")
    options = parser.parse_args()
    run = load_run(options.run)
    data, config = run.problem.data, run.problem.config
    with config.unlocked():
        config.sampling.chains = options.samples
    classifier = train_classifier(data)
    begun = time.perf_counter()
    images = draw_samples(run.problem, run.params, progress=True).images
    seconds = time.perf_counter() - begun
    held_out = data.to_float(data.held_out)[: options.samples]
    result = {
        "sampler": config.sampling.sampler,
        "training_steps": run.step,
        "training_seconds": run.training_seconds,
        "sampling_seconds": seconds,
        "finite": len(images),
        "classifier_accuracy": classifier.held_out_accuracy,
        "samples": judge(classifier, images),
        "held_out": judge(classifier, held_out),
    }
    print(
        f"{result['sampler']} after {run.step} steps of training ({run.training_seconds:.0f} s): "
        f"{len(images)} samples in {seconds:.0f} s; classifier's accuracy on held-out images "
        f"{classifier.held_out_accuracy:.3f}"
    )
    for name in ("samples", "held_out"):
        row = result[name]
        print(
            f"{name:<10}confidence {row['confidence']:.4f} ({row['confidence_error']:.4f}), "
            f"below 0.5 {row['below_half']:.3f}, classes {row['classes']}"
        )
    if options.json:
        write_atomically(options.json, json.dumps(result, indent=1) + "\n")
    if options.figure:
        figures.save(figures.sample_grid(images[:SHOWN], data.value_range), options.figure)


if __name__ == "__main__":
    main()
