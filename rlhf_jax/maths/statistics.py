"""What may be concluded from finitely many judgements: intervals, ratings, calibration, over-optimisation.

    win rate        (wins + ½ ties) / n, with a Wilson interval or a bootstrap over prompts
    ratings         P(i beats j) = σ(θ_i − θ_j), by maximum likelihood (order does not matter) or Elo's update
    calibration     does σ(Δr) say how often the preferred response has the higher score?
    best of n       KL = log n − (n−1)/n, and gold reward for every n from one pool of samples
    Gao et al.      gold reward against d = √KL: d(α − β d) for best-of-n, d(α − β log d) for RL

NumPy and SciPy in float64: nothing here is differentiated or runs on an accelerator.

Left out on purpose: agreement of more than two raters (Fleiss κ, Krippendorff α).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, sparse, special, stats


class Interval(NamedTuple):
    """A mean with the two ends of its confidence interval."""

    mean: float
    low: float
    high: float


def wilson(wins: float, n: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the proportion wins/n, inside [0, 1] (Wilson 1927). A tie is half a win."""
    if n <= 0 or not 0 <= wins <= n:
        raise ValueError(f"wilson: got {wins} wins of {n}, expected 0 <= wins <= n and n > 0")
    z = special.ndtri(0.5 + confidence / 2)
    p = wins / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return float(max(centre - half, 0.0)), float(min(centre + half, 1.0))


def cluster_bootstrap(
    values: ArrayLike,
    clusters: ArrayLike,
    *,
    num_resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> Interval:
    """Mean of `values` and its percentile interval, resampling whole clusters with replacement.

    Samples and raters of one prompt are not independent: make the prompt the cluster. Raises ValueError if
    the two arrays differ in length or are empty.
    """
    values, clusters = np.asarray(values, np.float64), np.asarray(clusters)
    if values.shape != clusters.shape or values.size == 0:
        raise ValueError(
            f"cluster_bootstrap: got {values.shape} values and {clusters.shape} clusters"
        )
    _, member = np.unique(clusters, return_inverse=True)
    total, size = np.bincount(member, values), np.bincount(member)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(size.size, np.full(size.size, 1 / size.size), size=num_resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile((drawn @ total) / (drawn @ size), [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike,
    *,
    num_resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> Interval:
    """Mean of a − b for two policies judged on the same prompts; the bootstrap keeps each pair together."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return cluster_bootstrap(
        difference, clusters, num_resamples=num_resamples, seed=seed, confidence=confidence
    )


def sign_test(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p-value of "a beats b on half of the prompts"; ties are dropped, and without any pair it is
    1.
    """
    wins, losses = np.sum(np.asarray(a) > np.asarray(b)), np.sum(np.asarray(a) < np.asarray(b))
    if wins + losses == 0:
        return 1.0
    return float(stats.binomtest(int(wins), int(wins + losses)).pvalue)


def length_controlled_win_rate(preference: ArrayLike, length_difference: ArrayLike) -> float:
    """Win rate that the judge would give if both answers were equally long, as in AlpacaEval 2.

        P(preferred) = σ(θ + φ tanh(Δlength / std Δlength)),   win rate = σ(θ)

    (Dubois et al. 2024, without their term for how hard each instruction is.) `preference` is 1,
    0 or ½ for a tie, or a probability; lengths in any unit. A ridge of 1e-6 keeps separable data finite.
    """
    y, difference = np.asarray(preference, np.float64), np.asarray(length_difference, np.float64)
    if y.shape != difference.shape or y.size == 0 or y.min() < 0 or y.max() > 1:
        raise ValueError(
            f"length_controlled_win_rate: got {y.shape} preferences and {difference.shape} lengths, "
            "expected as many of each, preferences between 0 and 1"
        )
    spread = difference.std()
    design = np.stack(
        [np.ones_like(y), np.tanh(difference / spread) if spread > 0 else np.zeros_like(y)]
    )

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logit = weights @ design
        nll = np.mean(np.logaddexp(0.0, logit) - y * logit) + 0.5e-6 * weights @ weights
        return nll, design @ (special.expit(logit) - y) / y.size + 1e-6 * weights

    return float(special.expit(optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS").x[0]))


def bradley_terry(wins: ArrayLike, *, prior: float) -> np.ndarray:
    """Maximum-likelihood strengths θ, centred to Σ θ = 0, of P(i beats j) = σ(θ_i − θ_j).

    `wins[i, j]` counts how often i beat j, a tie as half a win each. Minorise-maximise: p_i ← W_i / Σ_j
    n_ij/(p_i + p_j) (Hunter 2004). `prior` is the number of imagined drawn games per pair.
    Raises ValueError where the estimate is infinite: some group of players never lost to the rest, and
    `prior` is 0.
    """
    wins = np.asarray(wins, np.float64)
    wins = wins + prior / 2 * (1 - np.eye(len(wins)))
    np.fill_diagonal(wins, 0.0)
    num_groups, group = sparse.csgraph.connected_components(
        wins > 0, directed=True, connection="strong"
    )
    if num_groups > 1:
        raise ValueError(
            f"bradley_terry: players fall into groups {group.tolist()} of which some never lost to others, "
            "so no finite strengths exist; give prior > 0"
        )
    games, strength = wins + wins.T, np.ones(len(wins))
    for _ in range(100_000):
        pairs = strength[:, None] + strength[None, :]
        updated = wins.sum(axis=1) / (games / pairs).sum(axis=1)
        updated /= np.exp(np.log(updated).mean())
        converged = np.abs(np.log(updated / strength)).max() < 1e-10
        strength = updated
        if converged:
            break
    return np.log(strength)


def elo_ratings(strengths: ArrayLike, *, mean: float) -> np.ndarray:
    """Bradley-Terry strengths on Elo's scale: 400/ln 10 · θ, shifted to `mean`."""
    strengths = np.asarray(strengths, np.float64)
    return mean + 400 / np.log(10) * (strengths - strengths.mean())


def elo_expected(rating: float, opponent: float) -> float:
    """Expected result 1 / (1 + 10^((opponent − rating)/400))."""
    return float(special.expit((rating - opponent) * np.log(10) / 400))


def elo_update(rating: float, opponent: float, result: float, *, k: float) -> tuple[float, float]:
    """Both ratings after one game: R ← R + K (result − expected). The order of games matters."""
    change = k * (result - elo_expected(rating, opponent))
    return rating + change, opponent - change


class Calibration(NamedTuple):
    """How well σ(Δr) predicts preferences; the bins divide the confidence σ(|Δr|) ∈ [½, 1] evenly."""

    ece: float
    brier: float
    nll: float
    accuracy: float
    bin_confidence: np.ndarray
    bin_accuracy: np.ndarray
    bin_count: np.ndarray


def calibration(difference: ArrayLike, label: ArrayLike, *, num_bins: int) -> Calibration:
    """Calibration of a reward model: `difference` r_a − r_b, `label` 1 where a was preferred, else 0.

    ECE = Σ_bins count/n · |accuracy − mean confidence|. Brier and NLL are those of P(a) = σ(Δr). Empty bins
    hold NaN.
    """
    difference, label = np.asarray(difference, np.float64), np.asarray(label, np.float64)
    probability, confidence = special.expit(difference), special.expit(np.abs(difference))
    correct = np.where(label > 0.5, difference > 0, difference < 0).astype(np.float64)
    member = np.minimum(((confidence - 0.5) * 2 * num_bins).astype(int), num_bins - 1)
    count = np.bincount(member, minlength=num_bins)
    size = np.where(count == 0, np.nan, count)
    bin_confidence = np.bincount(member, confidence, minlength=num_bins) / size
    bin_accuracy = np.bincount(member, correct, minlength=num_bins) / size
    return Calibration(
        ece=float(np.nansum(count * np.abs(bin_accuracy - bin_confidence)) / label.size),
        brier=float(np.mean(np.square(probability - label))),
        nll=float(np.mean(np.logaddexp(0.0, difference) - label * difference)),
        accuracy=float(correct.mean()),
        bin_confidence=bin_confidence,
        bin_accuracy=bin_accuracy,
        bin_count=count,
    )


def fit_temperature(difference: ArrayLike, label: ArrayLike) -> float:
    """The T between e⁻⁵ and e⁵ that minimises the cross-entropy of σ(Δr / T); `label` may be a probability.

    Gao et al. 2022, section 2.2, recalibrate their proxies so.
    """
    difference, label = np.asarray(difference, np.float64), np.asarray(label, np.float64)

    def nll(log_temperature: float) -> float:
        logit = difference * np.exp(-log_temperature)
        return float(np.mean(np.logaddexp(0.0, logit) - label * logit))

    return float(np.exp(optimize.minimize_scalar(nll, bounds=(-5.0, 5.0), method="bounded").x))


def agreement(a: ArrayLike, b: ArrayLike) -> float:
    """Share of items to which two raters gave the same label."""
    return float(np.mean(np.asarray(a) == np.asarray(b)))


def cohen_kappa(a: ArrayLike, b: ArrayLike) -> float:
    """Agreement beyond chance, (p_o − p_e) / (1 − p_e); NaN if both raters always gave the same one label."""
    a, b = np.asarray(a), np.asarray(b)
    chance = sum(np.mean(a == label) * np.mean(b == label) for label in np.union1d(a, b))
    return float((agreement(a, b) - chance) / (1 - chance)) if chance < 1 else float("nan")


def best_of_n_kl(n: ArrayLike) -> np.ndarray:
    """KL(best of n ‖ policy) = log n − (n−1)/n nats; an upper bound if scores can be equal."""
    n = np.asarray(n, np.float64)
    return np.log(n) - (n - 1) / n


def best_of_n(proxy: ArrayLike, reward: ArrayLike, n: int) -> float:
    """Expected `reward` of the sample with the highest `proxy` among n drawn from the pool of N.

        Σ_i C(i−1, n−1) / C(N, n) · reward of the i-th lowest proxy

    Unbiased, and uses all N samples for every n (Nakano et al. 2021, appendix I). Ties in the proxy are
    broken evenly.
    """
    proxy, reward = np.asarray(proxy, np.float64), np.asarray(reward, np.float64)
    size = proxy.size
    if proxy.shape != reward.shape or not 1 <= n <= size:
        raise ValueError(
            f"best_of_n: got n = {n}, {proxy.shape} proxies, {reward.shape} rewards; need 1 <= n <= N"
        )
    place = np.arange(n, size + 1)
    log_weight = _log_binomial(place - 1, n - 1) - _log_binomial(np.array(size), n)
    weight = np.concatenate([np.zeros(n - 1), np.exp(log_weight)])
    levels, level = np.unique(proxy, return_inverse=True)
    sorted_level = np.sort(level)
    share = np.bincount(sorted_level, weight, minlength=levels.size) / np.bincount(level)
    return float(np.sum(share[level] * reward))


def _log_binomial(n: np.ndarray, k: int) -> np.ndarray:
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)


class OveroptimisationFit(NamedTuple):
    """Coefficients of one of Gao's curves and the share of variance that it explains."""

    alpha: float
    beta: float
    r_squared: float


def _fit(distance: np.ndarray, penalty: np.ndarray, reward: np.ndarray) -> OveroptimisationFit:
    if distance.size < 3:
        raise ValueError(f"fit: got {distance.size} points, need at least 3 for two coefficients")
    design = np.stack([distance, -distance * penalty], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(design, reward, rcond=None)
    residual = np.sum(np.square(reward - design @ np.array([alpha, beta])))
    return OveroptimisationFit(
        float(alpha), float(beta), float(1 - residual / np.sum(np.square(reward - reward.mean())))
    )


def fit_best_of_n(distance: ArrayLike, reward: ArrayLike) -> OveroptimisationFit:
    """Least squares of R = d (α − β d), d = √KL, R = 0 at d = 0 (Gao et al. 2022)."""
    distance, reward = np.asarray(distance, np.float64), np.asarray(reward, np.float64)
    return _fit(distance, distance, reward)


def fit_rl(distance: ArrayLike, reward: ArrayLike, *, min_distance: float) -> OveroptimisationFit:
    """Least squares of R = d (α − β log d) on d ≥ `min_distance` > 0, since the slope at 0 is infinite."""
    distance, reward = np.asarray(distance, np.float64), np.asarray(reward, np.float64)
    used = distance >= min_distance
    return _fit(distance[used], np.log(distance[used]), reward[used])


def best_of_n_peak(alpha: float, beta: float) -> tuple[float, float]:
    """Where d (α − β d) is highest, d* = α/2β, and how high: α²/4β."""
    return alpha / (2 * beta), alpha**2 / (4 * beta)


def rl_peak(alpha: float, beta: float) -> tuple[float, float]:
    """Where d (α − β log d) is highest, d* = exp(α/β − 1), and how high: β d*."""
    distance = float(np.exp(alpha / beta - 1))
    return distance, beta * distance


def rl_reward(distance: ArrayLike, alpha: float, beta: float, *, rounds: int) -> np.ndarray:
    """d (α − β log d + β log k): gold reward after k rounds of collecting labels and training (Gao 2022)."""
    distance = np.asarray(distance, np.float64)
    return distance * (alpha - beta * np.log(distance) + beta * np.log(rounds))
