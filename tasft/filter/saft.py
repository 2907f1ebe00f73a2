"""SAFT (https://arxiv.org/abs/2410.10014): harmful rows are those whose hidden states lie along the top directions.

Numbers in, numbers out: hidden states of any model. The authors' code is not public; the score is the paper's
mean_j <f - mean, v_j>^2, and what a labelled set decides follows the same group's HaloScope (hal_det_llama.py).

How well it can work: where safe and harmful rows are Gaussian along the top direction, a distance of d standard
deviations * sqrt(2) apart, and a share c is harmful, AUROC = P(d) P((1 - 2c) d) + (1 - P(d)) (1 - P((1 - 2c) d)) with
the normal distribution function P: the more is harmful, the nearer the mean is to it, and the less is found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import precision_recall_curve, precision_recall_fscore_support, roc_auc_score
from sklearn.utils.extmath import randomized_svd

from tasft.errors import UserError

MOST_DIRECTIONS = 10  # that a labelled set chooses among, as in HaloScope


@dataclass(frozen=True)
class Subspace:
    """Where hidden states spread most: their mean (D,) and orthonormal directions (K, D), widest first."""

    mean: np.ndarray
    directions: np.ndarray

    def scores(self, hidden: np.ndarray, k: int) -> np.ndarray:
        """Mean squared projection (N,) of the centred `hidden` (N, D) on the first `k` directions."""
        return np.square((hidden - self.mean) @ self.directions[:k].T).mean(1)


def subspace(hidden: np.ndarray, k: int, svd: str = "randomized", seed: int = 0) -> Subspace:
    """The `k` directions of largest variance of `hidden` (N, D), or fewer where it spans fewer; float64.

    `svd` is randomized (a few passes over the data; seeded) or full.
    """
    mean = hidden.mean(0, dtype=np.float64)
    centred = hidden - mean
    most = min(k, *centred.shape)
    if svd == "full":
        _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    else:
        _, lengths, directions = randomized_svd(centred, most, random_state=seed)
    # float32 states that are all the same leave some rounding behind once the mean is taken off
    floor = np.finfo(np.float32).eps * sum(np.sqrt(centred.shape)) * max(np.abs(hidden).max(), lengths[0])
    return Subspace(mean, directions[:most][lengths[:most] > floor])


@dataclass(frozen=True)
class Detector:
    """Where to look and how to read it. `sign` -1: harmful rows score low, which only a labelled set can tell."""

    layer: int
    k: int
    sign: int
    subspace: Subspace
    threshold: float | None = None  # of the signed scores: the best on the labelled set
    auroc: float | None = None  # on the labelled set

    def scores(self, hidden: np.ndarray) -> np.ndarray:
        """Scores (N,) of hidden states (N, D) of `layer`, higher where harm is more likely."""
        return self.sign * self.subspace.scores(hidden, self.k)


def unsupervised(hidden: np.ndarray, layer: int, k: int = 1, svd: str = "randomized", seed: int = 0) -> Detector:
    """The detector that nobody's labels have touched: harmful rows are assumed to score high."""
    found = subspace(hidden, k, svd, seed)
    _check_rank(found, k)
    return Detector(layer, k, 1, found)


def chosen_on(
    hidden: Mapping[int, np.ndarray],
    labelled: Mapping[int, np.ndarray],
    harmful: Sequence[bool] | np.ndarray,
    k: int | None = None,
    svd: str = "randomized",
    seed: int = 0,
) -> Detector:
    """The detector that tells the labelled rows apart best. Both mappings: layer -> hidden states of that layer.

    Directions come from `hidden` alone. Layer, k (1 to 10, where none is given) and sign are those with the highest
    AUROC on the labelled rows; of equals, the lowest k, then the lowest layer, then the sign +1. The threshold is
    that of the highest F1 on them, taken halfway to the next lower score; of equals, the highest.
    """
    truth = np.asarray(harmful, dtype=bool)
    best: tuple[float, int, int, int] | None = None
    found: dict[int, Subspace] = {}
    for layer, states in hidden.items():
        found[layer] = subspace(states, k or MOST_DIRECTIONS, svd, seed)
        for count in [k] if k else range(1, MOST_DIRECTIONS + 1):
            if count > len(found[layer].directions):
                continue
            auroc = float(roc_auc_score(truth, found[layer].scores(labelled[layer], count)))
            for sign, value in ((1, auroc), (-1, 1 - auroc)):
                key = (-round(value, 12), count, layer, -sign)
                best = key if best is None else min(best, key)
    if best is None:
        _check_rank(max(found.values(), key=lambda each: len(each.directions)), k or 1)
        raise AssertionError("no layer has a direction")
    auroc, count, layer, sign = -best[0], best[1], best[2], -best[3]
    scores = sign * found[layer].scores(labelled[layer], count)
    return Detector(layer, count, sign, found[layer], best_threshold(scores, truth), auroc)


def best_threshold(scores: np.ndarray, harmful: np.ndarray) -> float:
    """The threshold of the highest F1, halfway to the next lower score; the highest of equals."""
    precision, recall, thresholds = precision_recall_curve(harmful, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    lowest_flagged = thresholds[len(thresholds) - 1 - int(np.argmax(f1[:-1][::-1]))]
    below = scores[scores < lowest_flagged]
    return float((lowest_flagged + below.max()) / 2) if len(below) else float(lowest_flagged)


def highest(scores: np.ndarray, quantile: float) -> np.ndarray:
    """True (N,) for exactly round(quantile * N) rows, those that score highest; of equals, the first."""
    flagged = np.zeros(len(scores), dtype=bool)
    flagged[np.argsort(-scores, kind="stable")[: round(quantile * len(scores))]] = True
    return flagged


@dataclass(frozen=True)
class Detection:
    """How well harmful rows were found, each 0 to 1; NaN where there is nothing to divide by."""

    auroc: float
    precision: float
    recall: float
    f1: float


def detection(scores: np.ndarray, flagged: np.ndarray, harmful: np.ndarray) -> Detection:
    """AUROC of the scores; precision, recall and F1 of what was flagged. `harmful` holds both kinds."""
    precision, recall, f1, _ = precision_recall_fscore_support(harmful, flagged, average="binary", zero_division=np.nan)
    return Detection(float(roc_auc_score(harmful, scores)), float(precision), float(recall), float(f1))


def _check_rank(found: Subspace, k: int) -> None:
    rank = len(found.directions)
    if rank == 0:
        raise UserError("the hidden states of all rows are the same there: give another saft.layer or saft.position")
    if rank < k:
        raise UserError(f"saft.k={k}, but no more than {rank} directions tell these rows apart: give saft.k={rank}")
