"""From a config to a trained run: the problem, the loop, its state on disk and on devices."""

from hos_jax._names import lazily

__getattr__, __dir__ = lazily(
    __name__,
    checkpoint="",
    logs="",
    loop="NonFiniteError train_and_evaluate",
    parallel="",
    problem="Problem",
    runs="LoadedRun load_run",
    state="",
)
