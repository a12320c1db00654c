"""How the uncertainty of a fit is drawn: over configurations, whether they are few or many.

A configuration is all that a trial is but its seed. Its seeds share one error, that of the law, so
they stay together: fits take the mean over the seeds of each configuration.

Few configurations: a wild bootstrap. Each keeps its place and gets its fitted value plus its own
residual, turned by a random sign. A residual that the fit pulled towards itself is enlarged by
1 / (1 - leverage) (HC3, MacKinnon & White 1985), and a whole round by sqrt(df / chi2 of df), so
that rounds spread as Student's t does and not as if the noise were known. On straight lines through
6 to 16 configurations, with even noise and with noise that grows along the line, 90% intervals of
the slope held the truth in 89 to 93% of 1,500 simulations; without enlarging in 75 to 85%.

Many configurations: they are drawn again with replacement, which also covers a law that is wrong in
places; round by round as weights. That is too narrow at first: of the same lines it held in 86% at
30 configurations, 88% at 40 and 89% at 60 of 1,000 simulations each.

Shapes: m configurations, R rounds.
"""

from __future__ import annotations

import numpy as np

MANY_CONFIGURATIONS = 50
_LARGEST_LEVERAGE = 0.9  # a point that the fit goes through tells nothing of its own noise


def wild_values(
    fitted: np.ndarray,
    residuals: np.ndarray,
    leverages: np.ndarray,
    *,
    parameters: int,
    rounds: int,
    seed: int,
) -> np.ndarray:
    """Values that another study of the same configurations might have had.

    Two fits on the same configurations in the same order, drawn with the same seed, get the same
    signs and spreads: that pairs them.

    Args:
        fitted: (m,) values of the law.
        residuals: (m,) observed less fitted.
        leverages: (m,) diagonal of the hat matrix (for curves, of their linearisation), [0, 1].
        parameters: that the fit has.
        rounds: how many.
        seed: of signs and spreads.

    Returns:
        (R, m).

    Raises:
        ValueError: if there are no more configurations than parameters: then nothing is left over
            to tell the noise by.
    """
    freedom = len(fitted) - parameters
    if freedom < 1:
        raise ValueError(
            f"{len(fitted)} configurations for {parameters} parameters leave nothing to tell the "
            f"noise by; an interval needs {1 - freedom} more."
        )
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.array([-1.0, 1.0]), size=(rounds, len(fitted)))
    spread = np.sqrt(freedom / rng.chisquare(freedom, size=rounds))
    enlarged = residuals / (1 - np.minimum(leverages, _LARGEST_LEVERAGE))
    return fitted + spread[:, None] * signs * enlarged


def drawn_weights(configurations: int, *, rounds: int, seed: int) -> np.ndarray:
    """How often each configuration is drawn in each round, (R, m) of whole numbers as float64."""
    rng = np.random.default_rng(seed)
    even = np.full(configurations, 1 / configurations)
    return rng.multinomial(configurations, even, size=rounds).astype(np.float64)
