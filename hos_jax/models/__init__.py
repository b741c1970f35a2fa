"""Networks, the heads that make structured matrices of their outputs, and the models of both."""

from hos_jax._names import lazily

__getattr__, __dir__ = lazily(
    __name__,
    heads="SecondOrderHead",
    hessian_model="FixedScoreModel HessianModel",
    mlp="MLP",
    refinenet="RefineNet",
    score_model="ModelOutputs ScoreModel",
    unet="UNet",
)
