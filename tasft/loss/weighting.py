"""How much each example of an optimizer step weighs; numbers only, no tensors."""

from collections.abc import Sequence
from math import comb
from typing import Literal

SafeReduction = Literal["token_mean", "example_mean"]
Weighting = Literal["groups", "examples"]


def toxic_share(safe: int, toxic: int, group: int, weighting: Weighting) -> float:
    """What the toxic rows' weights of a step add up to on average, without lambda; in [0, 1].

    The chance that a group holds a toxic row, or the share of toxic rows where every example weighs the same.
    """
    if weighting == "examples":
        return toxic / (safe + toxic) if toxic else 0.0
    return toxic_group_probability(safe, toxic, group)


def toxic_group_probability(safe: int, toxic: int, group: int) -> float:
    """The chance that a group drawn from safe + toxic examples, none twice, holds a toxic one; in [0, 1].

    1 - C(safe, group) / C(safe + toxic, group), in exact integers; a group larger than the data is the data.
    """
    if toxic == 0:
        return 0.0
    group = min(group, safe + toxic)
    groups = comb(safe + toxic, group)
    return (groups - comb(safe, group)) / groups


def equal_weights(lengths: Sequence[int]) -> list[float]:
    """1 / number of examples for each, as TRL's mean over a batch; 0 for one without response tokens."""
    counted = sum(n > 0 for n in lengths)
    return [1 / counted if n else 0.0 for n in lengths]


def example_weights(
    lengths: Sequence[int],
    toxic: Sequence[bool],
    group: int,
    weight: float,
    safe_reduction: SafeReduction = "token_mean",
) -> list[float]:
    """The weights w_i with which a step's loss is sum_i w_i l_i, one per example of the step, >= 0.

    lengths are response tokens. The step is cut, in order, into G groups of `group` examples, the last maybe
    shorter: the paper's Eq. 6 holds within a group, and the step is the mean of its groups. Among a group's K
    safe and T toxic examples a safe one weighs n_i / (G sum_j n_j) ("token_mean") or 1 / (G K)
    ("example_mean"), a toxic one weight / (G T); a kind that a group lacks contributes nothing. An example
    without response tokens has no loss: it weighs 0 and counts in neither K nor T.
    """
    starts = range(0, len(lengths), group)
    weights: list[float] = []
    for start in starts:
        members = list(zip(lengths[start : start + group], toxic[start : start + group], strict=True))
        tokens = sum(n for n, is_toxic in members if not is_toxic)
        safe_count = sum(n > 0 for n, is_toxic in members if not is_toxic)
        toxic_count = sum(n > 0 for n, is_toxic in members if is_toxic)
        for n, is_toxic in members:
            if n == 0:
                share = 0.0
            elif is_toxic:
                share = weight / toxic_count
            elif safe_reduction == "token_mean":
                share = n / tokens
            else:
                share = 1 / safe_count
            weights.append(share / len(starts))
    return weights
