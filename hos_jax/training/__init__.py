"""From a config to a trained run: the problem, the loop, its state on disk and on devices."""
