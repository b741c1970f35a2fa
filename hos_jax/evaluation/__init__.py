"""What a trained run is worth: numbers on held-out images, samples, figures, and a page."""

from hos_jax._names import lazily

__getattr__, __dir__ = lazily(
    __name__,
    evaluate="evaluate_run",
    figures="",
    generate="",
    held_out="",
    likelihood="",
    report="",
)
