"""Exact scores at every noise level, for tests in place of a model."""


def derivatives_of(law):
    """`(noisy, sigma) -> (s1, s2)` of a law."""

    def derivatives_fn(noisy, sigma):
        smooth = law.smooth(sigma)
        return smooth.score(noisy), smooth.hessian(noisy)

    return derivatives_fn
