"""What a second-order score is good for: one use a file, on top of all the rest."""

from hos_jax._names import lazily

__getattr__, __dir__ = lazily(__name__, measure_next="")
