"""How many test samples a certificate needs."""

import math

from scipy import stats

from secateur.allocation.betting import largest_bet
from secateur.allocation.paired_score import NUISANCE_LEVEL, restricted_share
from secateur.errors import ArgumentError, as_number

POWER = 0.8


def sample_size(
    tolerance: float, *, discordance: float, drop: float = 0.0, confidence: float = 0.95, power: float = POWER
) -> int | None:
    """Test samples with which a drop of `tolerance` in a 0/1 metric would be ruled out, for planning.

    From the normal approximation of the score statistic, so about right; the test itself is exact.

    Source: Tango 1998 (Statistics in Medicine 17), after Nam 1997 (Biometrics 53).

    Args:
        tolerance: in (0, 1).
        discordance: share of samples that exactly one of the two models gets right.
        drop: the true drop; at most the discordance.
        confidence: of the certificate.
        power: probability with which it is to be given.

    Returns:
        The number of samples; None where the drop is not below the tolerance, and no number is enough.

    Raises:
        ArgumentError: a value outside its range.

    >>> sample_size(0.01, discordance=0.05), sample_size(0.02, discordance=0.05), sample_size(0.01, discordance=0.0)
    (3165, 838, 299)
    >>> sample_size(0.01, discordance=0.05, drop=0.01) is None
    True
    """
    _check(tolerance, confidence, power)
    if not abs(as_number("drop", drop)) <= as_number("discordance", discordance) <= 1:
        raise ArgumentError(f"discordance={discordance} must lie between the size of the drop ({drop}) and 1")
    if drop >= tolerance:
        return None
    alpha = 1 - confidence
    level = alpha - nuisance_level(alpha)
    gained = float(restricted_share((discordance + drop) / 2, (discordance - drop) / 2, tolerance))  # type: ignore[arg-type]
    at_tolerance = 2 * gained + tolerance - tolerance**2
    found = _normal(level, power, tolerance - drop, at_tolerance, discordance - drop**2)
    # Without any loss at all it takes so many.
    return max(found, math.ceil(math.log(level) / math.log1p(-tolerance)))


def nuisance_level(alpha: float) -> float:
    """Level that the exact test spends on the discordance."""
    return min(NUISANCE_LEVEL, alpha / 500)


def share_size(tolerance: float, share: float, alpha: float, power: float = POWER) -> int | None:
    """Samples with which a share of changed predictions above `tolerance` would be ruled out.

    >>> share_size(0.02, 0.0, 0.05), share_size(0.02, 0.02, 0.05)
    (149, None)
    """
    if share >= tolerance:
        return None
    found = _normal(alpha, power, tolerance - share, tolerance * (1 - tolerance), share * (1 - share))
    return max(found, math.ceil(math.log(alpha) / math.log1p(-tolerance)))


def mean_size(gap: float, variance: float, alpha: float, power: float = POWER) -> int | None:
    """Samples with which a t-test would certify a mean damage that lies `gap` below the tolerance.

    >>> mean_size(0.01, 0.05, 0.05), mean_size(0.0, 0.05, 0.05)
    (3092, None)
    """
    if not gap > 0 or not math.isfinite(variance):
        return None
    return max(2, _normal(alpha, power, gap, variance, variance))


def betting_size(
    mean: float, variance: float, limit: float, tolerance: float, alpha: float, power: float = POWER
) -> int | None:
    """Samples with damages of this mean and variance with which bets (see `betting_p_value`) would pass.

    The log capital after n bets of √(2 log(1/alpha) / (n variance)) is normal with mean n bet gap - log(1/alpha) and
    variance 2 log(1/alpha), and must reach log(1/alpha). Bets are bounded: even without variance it takes time.

    >>> betting_size(0.0, 0.0, 1.0, 0.5, 0.05), betting_size(1.0, 0.0, 1.0, 1.0, 0.05)  # 1.75**n >= 20
    (6, None)
    """
    gap = tolerance - mean
    if not gap > 0:
        return None
    goal = math.log(1 / alpha)
    reach = 2 * goal + float(stats.norm.ppf(power)) * math.sqrt(2 * goal)
    return max(
        math.ceil(variance * reach**2 / (2 * goal * gap**2)),
        math.ceil(goal / math.log1p(largest_bet(limit, tolerance) * gap / (2 * limit))),
    )


def _normal(alpha: float, power: float, gap: float, at_tolerance: float, variance: float) -> int:
    """Samples at which a normal test of this level and these variances has the power."""
    reach = stats.norm.isf(alpha) * math.sqrt(at_tolerance) + stats.norm.ppf(power) * math.sqrt(variance)
    return math.ceil((float(reach) / gap) ** 2)


def _check(tolerance: float, confidence: float, power: float) -> None:
    for name, value in (("tolerance", tolerance), ("confidence", confidence), ("power", power)):
        if not 0 < as_number(name, value) < 1:
            raise ArgumentError(f"{name}={value} must lie strictly between 0 and 1")
