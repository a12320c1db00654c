"""Does `phenoscale plan` choose better runs? `python -m benchmarks.plan [--studies N] [--json F]`.

Simulated studies with planted laws: nine measured runs (three sizes, three shares of the data, each
three times the one before), a catalogue of larger sizes, more data and second seeds, and a budget
of 1, 3 or 10 times the cost of the largest run measured. Four ways to spend it: as `plan` does, at
random, cheapest first, largest first; all go on until nothing more is affordable. Then the same fit
of old and new runs forecasts a target of 10 times the budget's compute, and its error is compared.
A run costs size times data, and size times 0.15 of the whole data for embedding the screen.

Three kinds of planted truth:
- loss: L(N, D) = E + A / N^alpha + B / D^beta, noise 0.5 to 1%; the plan is by the Jacobian of that
  law as fitted to the nine runs, the forecast by the law refitted.
- score, a plane: b + c log10 N + d log10 D, noise 0.008 to 0.02; plan and forecast are those of
  the command: the wider model of `plan_model.py`, and `choose_surface`.
- score, levelling off: power laws of N and of D with exponents of 0.2 to 0.5; the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, figure, publish
from phenoscale.planning.plan_model import PRIOR_SD, wide_features
from phenoscale.scaling.next_runs import choose_runs, covariance_of, variance_gains
from phenoscale.scaling.surface_choice import choose_surface

BUDGETS = (1.0, 3.0, 10.0)
STEP = np.log10(3)  # decades between sizes, and between shares of the data
EMBEDDING = 0.15  # of the cost of training on all of the data once
BEYOND = 10.0
POLICIES = ("plan", "random", "cheapest", "largest")
# Of log E, log A, log B, alpha, beta, before anything is measured: nothing that the nine runs do
# not tell better, but it keeps the covariance finite where they cannot tell two of them apart.
LOSS_PRIOR_SD = np.array([1.0, 1.5, 1.5, 0.3, 0.3])
_LEAST, _MOST = np.array([-6, -8, -8, 0.02, 0.02]), np.array([3, 6, 6, 1.5, 1.5])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Design:
    """Runs measured, runs that could be made, and the target; decades from the middle."""

    measured: np.ndarray
    """(9, 2) size and data."""
    catalogue: np.ndarray
    """(k, 2) size and data."""
    costs: np.ndarray
    """(k,) in costs of the largest run measured."""
    target: np.ndarray
    """(1, 2) size and data."""
    budget: float
    """In costs of the largest run measured."""

    @property
    def everywhere(self) -> np.ndarray:
        """(9 + k + 1, 2) all of them."""
        return np.concatenate([self.measured, self.catalogue, self.target])


def design_of(budget: float) -> Design:
    """The runs of every simulated study at one budget."""
    steps = STEP * np.arange(-1, 2)
    data = STEP + np.log10([1 / 9, 2 / 9, 1 / 3, 2 / 3, 1, 2, 4, 8])
    runs = np.array(list(itertools.product(STEP * np.arange(-1, 4), data)))
    costs = 10 ** (runs[:, 0] - STEP) * (10 ** (runs[:, 1] - STEP) + EMBEDDING) / (1 + EMBEDDING)
    return Design(
        measured=np.array(list(itertools.product(steps, steps))),
        catalogue=runs[costs <= budget],
        costs=costs[costs <= budget],
        target=np.full((1, 2), STEP + np.log10(BEYOND * budget) / 2),
        budget=budget,
    )


def chosen_by(
    policy: str, design: Design, planned: Sequence[int], rng: np.random.Generator
) -> list[int]:
    """Places in the catalogue, in the order in which they are run."""
    if policy == "plan":
        return list(planned)
    order = np.argsort(design.costs, kind="stable")
    order = {"random": rng.permutation(order), "cheapest": order, "largest": order[::-1]}[policy]
    left, chosen = design.budget, []
    for place in order:
        if design.costs[place] <= left + 1e-9:
            chosen.append(int(place))
            left -= design.costs[place]
    return chosen


def planned_by(
    gradients: np.ndarray, noise: float, design: Design, prior_sd: np.ndarray
) -> tuple[int, ...]:
    """What `phenoscale plan` chooses, by gradients (9 + k + 1, p) everywhere."""
    number = len(design.measured)
    known = covariance_of(gradients[:number], np.full(number, noise), prior_sd)
    runs = gradients[number:-1]
    gains = variance_gains(known, runs, np.full(len(runs), noise), gradients[-1:])
    return choose_runs(gains, design.costs, design.budget)


def log_losses(laws: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(s, k) log of the law at places (s, k, 2), and (s, k, 5) its Jacobian.

    Args:
        laws: (s, 5) log E, log A, log B, alpha, beta, of places in decades from the middle.
        places: (s, k, 2) size and data.
    """
    logs = places * np.log(10)
    terms = laws[:, None, :3].repeat(places.shape[1], axis=1)
    terms[:, :, 1:] -= laws[:, None, 3:] * logs
    top = terms.max(axis=2, keepdims=True)
    parts = np.exp(terms - top)
    whole = parts.sum(axis=2, keepdims=True)
    shares = parts / whole
    jacobian = np.concatenate([shares, -logs * shares[:, :, 1:]], axis=2)
    return (top + np.log(whole))[:, :, 0], jacobian


def fit_losses(places: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(s, 5) laws of all studies at once: Levenberg-Marquardt on the log, the best of 8 starts.

    Args:
        places: (s, k, 2).
        values: (s, k) log of losses.
        weights: (s, k) 1 for runs that were made, else 0.
    """
    number = len(values)
    best, lowest = np.zeros((number, 5)), np.full(number, np.inf)
    for floor, alpha, beta in itertools.product((0.15, 0.4), (0.2, 0.5), (0.2, 0.5)):
        laws = np.tile([np.log(floor), np.log(0.1), np.log(0.1), alpha, beta], (number, 1))
        predicted, jacobian = log_losses(laws, places)
        squares = (weights * (values - predicted) ** 2).sum(axis=1)
        damping = np.full(number, 1e-2)
        for _ in range(60):
            weighted = jacobian * weights[:, :, None]
            normal = np.einsum("ski,skj->sij", weighted, jacobian)
            slope = np.einsum("ski,sk->si", weighted, values - predicted)
            scale = damping[:, None] * (np.einsum("sii->si", normal) + 1e-6)
            step = np.linalg.solve(normal + scale[:, :, None] * np.eye(5), slope[:, :, None])
            tried = np.clip(laws + step[:, :, 0], _LEAST, _MOST)
            there, moved = log_losses(tried, places)
            now = (weights * (values - there) ** 2).sum(axis=1)
            good = now < squares
            laws = np.where(good[:, None], tried, laws)
            predicted = np.where(good[:, None], there, predicted)
            jacobian = np.where(good[:, None, None], moved, jacobian)
            squares = np.where(good, now, squares)
            damping = np.clip(np.where(good, damping * 0.3, damping * 4), 1e-9, 1e9)
        better = squares < lowest
        best = np.where(better[:, None], laws, best)
        lowest = np.where(better, squares, lowest)
    return best


def loss_errors(design: Design, studies: int, seed: int) -> dict[str, np.ndarray]:
    """Policy to (s,) relative errors of the forecast loss at the target."""
    rng = np.random.default_rng(seed)
    truth = np.stack(
        [
            np.log(rng.uniform(0.3, 0.5, studies)),
            *np.log(rng.uniform(0.05, 0.25, (2, studies))),
            *rng.uniform(0.2, 0.5, (2, studies)),
        ],
        axis=1,
    )
    noise = rng.uniform(0.005, 0.01, studies)
    places = np.tile(design.everywhere, (studies, 1, 1))
    true, _ = log_losses(truth, places)
    seen = true + noise[:, None] * rng.standard_normal(true.shape)
    made = np.zeros(true.shape)
    made[:, : len(design.measured)] = 1
    laws = fit_losses(places, seen, made)
    fitted, jacobian = log_losses(laws, places)
    squares = (made * (seen - fitted) ** 2).sum(axis=1)
    told = np.maximum(np.sqrt(squares / (len(design.measured) - 5)), 0.003)
    planned = [planned_by(jacobian[s], told[s], design, LOSS_PRIOR_SD) for s in range(studies)]
    errors = {}
    for policy in POLICIES:
        with_new = made.copy()
        for s in range(studies):
            chosen = np.array(chosen_by(policy, design, planned[s], rng))
            with_new[s, len(design.measured) + chosen] = 1
        refitted, _ = log_losses(fit_losses(places, seen, with_new), places)
        errors[policy] = np.abs(np.expm1(refitted[:, -1] - true[:, -1]))
    return errors


def score_errors(design: Design, studies: int, seed: int, curved: bool) -> dict[str, np.ndarray]:
    """Policy to (s,) errors of the forecast score at the target."""
    rng = np.random.default_rng(seed)
    number = len(design.measured)
    n, d = design.everywhere.T
    places = {"num_parameters": n, "crops_seen": d, "training_flops": n + d}
    errors: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    for _ in range(studies):
        slopes = rng.uniform((0.0, 0.04), (0.08, 0.16))
        rates = rng.uniform(0.2, 0.5, 2) * np.log(10)
        x = -np.expm1(-rates * design.everywhere) / rates if curved else design.everywhere
        true = 0.35 + x @ slopes
        seen = true + rng.uniform(0.008, 0.02) * rng.standard_normal(len(true))
        choice = choose_surface({axis: p[:number] for axis, p in places.items()}, seen[:number])
        gradients = wide_features(places, choice.chosen.basis.centre)
        planned = planned_by(gradients, max(choice.chosen.noise, 1e-3), design, PRIOR_SD)
        for policy in POLICIES:
            chosen = np.array(chosen_by(policy, design, planned, rng))
            made = np.concatenate([np.arange(number), number + chosen])
            refit = choose_surface({axis: p[made] for axis, p in places.items()}, seen[made])
            forecast = refit.chosen.predict({axis: p[-1:] for axis, p in places.items()})[0]
            errors[policy].append(abs(forecast - true[-1]))
    return {policy: np.array(found) for policy, found in errors.items()}


def figures_of(name: str, errors: dict[str, np.ndarray], unit: str, scale: float) -> list[Figure]:
    """Median and mean error of each policy, and how often the plan wins."""
    figures = []
    for policy, found in errors.items():
        for how, value in (("median", np.median(found)), ("mean", np.mean(found))):
            others = [getattr(np, how)(errors[other]) for other in POLICIES[1:]]
            goal = scale * min(others) if policy == "plan" else None
            figures.append(
                figure(f"{name}: {policy}, {how}", scale * float(value), unit, goal, at_most=True)
            )
    for other in POLICIES[1:]:
        wins = float(np.mean(errors["plan"] < errors[other]))
        figures.append(figure(f"{name}: plan beats {other}", wins, "of studies", 0.5))
    return figures


def main() -> None:
    """Simulates the studies and prints the errors of the four policies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = []
    for budget in BUDGETS:
        design = design_of(budget)
        number, seed = options.studies, options.seed
        kinds = {
            "loss": (loss_errors(design, number, seed), "%", 100.0),
            "plane": (score_errors(design, number, seed, False), "of score", 1.0),
            "levelling off": (score_errors(design, number, seed, True), "of score", 1.0),
        }
        for kind, (errors, unit, scale) in kinds.items():
            figures += figures_of(f"{kind}, budget {budget:g}", errors, unit, scale)
    publish(
        figures,
        options.json,
        [
            f"{options.studies} simulated studies of each kind and budget; error of the forecast "
            f"at {BEYOND:g} times the budget's compute; budgets in costs of the largest run "
            "measured; the goal of the plan is the best of the three others"
        ],
    )


if __name__ == "__main__":
    main()
