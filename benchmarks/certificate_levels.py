"""Size and power of the certificate: enumerated where that is possible, simulated where not.

python benchmarks/certificate_levels.py --out benchmarks/certificate
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import optimize, special, stats

from secateur.allocation.betting import log_capital
from secateur.allocation.paired_score import exact_p_value, score_statistic

ALPHA = 0.05
SIZES = (500, 1000, 2000, 5000, 10_000)
TOLERANCES = (0.005, 0.01, 0.02, 0.03, 0.05)
DISCORDANCES = (0.01, 0.02, 0.05, 0.1, 0.2)
LARGEST = 0.2  # discordance up to which sizes are enumerated

Rule = Callable[[int, int], bool]


def main() -> None:
    """Enumerate, simulate, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, nargs="+", default=SIZES)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    write(given.out / "simulated.json", {"betting": betting(), "choosing": choosing()})
    write(given.out / "power.json", power_table(10_000, 0.01, 0.004))
    for n in given.samples:
        write_sizes(given.out, n)


def write_sizes(out: Path, n: int) -> None:
    """Enumerate the sizes with `n` test samples."""
    start = time.perf_counter()
    rows = [row for tolerance in TOLERANCES for row in sizes(n, tolerance)]
    seconds = round(time.perf_counter() - start, 1)
    write(out / f"exact-{n}.json", {"n": n, "alpha": ALPHA, "sizes": rows, "seconds": seconds})


def sizes(n: int, tolerance: float) -> list[dict[str, object]]:
    """Probability of a certificate, and of the naive rule's, when the true drop equals the tolerance."""
    passes = edge(n, exact(n, tolerance))
    naive = edge(n, lambda lost, gained: (lost - gained) / n <= tolerance)
    grid = np.unique([*DISCORDANCES, *np.geomspace(tolerance, LARGEST, 60)])
    everywhere = max(size(n, passes, d, tolerance) for d in grid if d >= tolerance)
    return [
        {
            "tolerance": tolerance,
            "discordance": d,
            "size": size(n, passes, d, tolerance),
            "naive": probability(n, naive, d, tolerance),
            "largest_size_at_any_discordance": everywhere,
        }
        for d in DISCORDANCES
        if d >= tolerance
    ]


def power_table(n: int, tolerance: float, drop: float) -> list[dict[str, float]]:
    """Power at a true drop, and the largest observed drop that is certified; asymptotic test beside it."""
    passes = edge(n, exact(n, tolerance))
    normal = edge(n, lambda b, c: score_statistic(np.array([b]), np.array([c]), n, tolerance)[0] <= -1.6448536269514722)
    return [
        {
            "discordance": d,
            "power_exact": probability(n, passes, d, drop),
            "power_asymptotic": probability(n, normal, d, drop),
            "power_of_any_test": envelope(n, tolerance, d, drop),
            "size_asymptotic": probability(n, normal, d, tolerance),
            "largest_certified_drop": (2 * int(passes[round(n * d)]) - round(n * d)) / n,
        }
        for d in (0.02, 0.05, 0.1)
    ]


def exact(n: int, tolerance: float) -> Rule:
    """The certificate's own test."""
    return lambda lost, gained: exact_p_value(n, lost, gained, tolerance, enough=ALPHA) <= ALPHA


def edge(n: int, rule: Rule) -> np.ndarray:
    """For each number of discordant pairs, the most losses with which the rule certifies; -1 = none."""
    most = round(n * LARGEST + 8 * math.sqrt(n * LARGEST))
    found = np.full(most + 1, -1)
    lost = 0
    for total in range(most + 1):
        # The edge moves little from one total to the next.
        while lost >= 0 and not rule(lost, total - lost):
            lost -= 1
        while lost < total and rule(lost + 1, total - lost - 1):
            lost += 1
        found[total] = lost
        lost = max(lost, 0)
    return found


def probability(n: int, passes: np.ndarray, discordance: float, drop: float) -> float:
    """Exact probability of a certificate at a true discordance and drop."""
    total = np.arange(len(passes))
    weights = stats.binom.pmf(total, n, discordance)
    inside = stats.binom.cdf(passes, total, min((discordance + drop) / (2 * discordance), 1.0))
    return float((weights * inside).sum())


def size(n: int, passes: np.ndarray, discordance: float, drop: float) -> float:
    """The same, with the probability of all outcomes that were not enumerated on top."""
    return probability(n, passes, discordance, drop) + float(stats.binom.sf(len(passes) - 1, n, discordance))


def envelope(n: int, tolerance: float, discordance: float, drop: float) -> float:
    """An upper bound on the power of all tests of this level: that of the best test of one simple hypothesis.

    By Neyman and Pearson (1933), no test that holds its level where the drop equals the tolerance and the
    discordance is `d` has more power than their likelihood-ratio test, rejecting at random at its edge. The least
    favourable `d` gives the closest bound.
    """
    true = (discordance + drop) / 2, (discordance - drop) / 2
    spread = 9 * math.sqrt(n * discordance)
    lost, gained = np.meshgrid(*(np.arange(max(0, int(n * p - spread)), int(n * p + spread) + 2) for p in true))
    both = log_probability(n, lost, gained, *true)

    def power(d: float) -> float:
        null = log_probability(n, lost, gained, (d + tolerance) / 2, (d - tolerance) / 2)
        order = np.argsort((null - both).ravel(), kind="stable")
        level = np.cumsum(np.exp(null.ravel()[order]))
        inside = int(np.searchsorted(level, ALPHA))
        chances = np.exp(both.ravel()[order])
        left = ALPHA - (level[inside - 1] if inside else 0.0)
        return float(chances[:inside].sum() + chances[inside] * left / (level[inside] - (ALPHA - left)))

    lowest = max(tolerance * 1.001, discordance * 0.8)
    return float(optimize.minimize_scalar(power, bounds=(lowest, discordance * 1.25), method="bounded").fun)


def log_probability(n: int, lost: np.ndarray, gained: np.ndarray, share_lost: float, share_gained: float) -> np.ndarray:
    """Of a trinomial outcome."""
    same = n - lost - gained
    ways = special.gammaln(n + 1) - special.gammaln(lost + 1) - special.gammaln(gained + 1) - special.gammaln(same + 1)
    chances = lost * math.log(share_lost) + gained * math.log(share_gained)
    return np.asarray(ways + chances + same * math.log1p(-share_lost - share_gained))


def betting(runs: int = 2000) -> list[dict[str, object]]:
    """Share of false certificates for bounded losses whose mean damage equals the tolerance."""
    rng = np.random.default_rng(0)
    rows = []
    for n in (500, 2000):
        for tolerance in (0.005, 0.02, 0.05):
            for name, draw in LOSSES.items():
                draws = (np.clip(draw(rng, n, tolerance), -1, 1) for _ in range(runs))
                false = sum(log_capital(d, 1.0, tolerance, ALPHA).max() >= math.log(1 / ALPHA) for d in draws)
                rows.append({"n": n, "tolerance": tolerance, "losses": name, "runs": runs, "false": false / runs})
    return rows


def rare(rng: np.random.Generator, n: int, mean: float) -> np.ndarray:
    """Nothing in most samples, the whole loss in a few."""
    return (rng.random(n) < mean).astype(float)


def symmetric(rng: np.random.Generator, n: int, mean: float) -> np.ndarray:
    """Small changes both ways."""
    return mean + 0.2 * rng.uniform(-1, 1, n)


def skewed(rng: np.random.Generator, n: int, mean: float) -> np.ndarray:
    """Slight gains in most samples, great losses in a few; clipped at 1 with the mean kept."""
    return np.where(rng.random(n) < 0.02, mean + 0.49, mean - 0.01)


LOSSES = {"rare": rare, "symmetric": symmetric, "skewed": skewed}


def choosing(runs: int = 2000, n: int = 2000, tolerance: float = 0.02) -> dict[str, float]:
    """Share of runs that ship a model worse than the tolerance, of ten ever more aggressive ones."""
    rng = np.random.default_rng(1)
    drops = np.linspace(0.002, 0.04, 10)
    passes = edge(n, exact(n, tolerance))
    naive = sequence = 0
    for _ in range(runs):
        shares = [((0.06 + d) / 2, (0.06 - d) / 2) for d in drops]
        counts = [rng.multinomial(n, [b, c, 1 - b - c]) for b, c in shares]
        good = [(lost - gained) / n <= tolerance for lost, gained, _ in counts]
        naive += any(good) and drops[max(k for k, ok in enumerate(good) if ok)] > tolerance
        certified = [lost <= passes[lost + gained] for lost, gained, _ in counts]
        passed = certified.index(False) if False in certified else len(certified)
        sequence += passed > 0 and drops[passed - 1] > tolerance
    return {"runs": runs, "n": n, "tolerance": tolerance, "naive": naive / runs, "sequence": sequence / runs}


def write(path: Path, value: object) -> None:
    """Keep a result."""
    path.write_text(json.dumps(value, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
