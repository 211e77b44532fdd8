"""What a classifier says of every image, as a pandas table, and what follows: how good each class is, how sure the
accuracy is, and what tells two models apart."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..open_set.confidence import Reliability, reliability_of

LEVEL, RESAMPLES = 0.95, 10_000  # of intervals
SHARES = ["precision", "recall", "f1"]


def outcome_table(batches: Iterable[tuple[Tensor, ...]], class_names: Sequence[str]) -> pd.DataFrame:
    """Of batches of labels, predictions and confidences, each (M,): "given" and "predicted" class by name, and
    "confidence", the largest first; the index says which image it is."""
    names = np.array(class_names, object)
    labels, predictions, confidences = (torch.cat(column).cpu().numpy() for column in zip(*batches))
    table = pd.DataFrame({"given": names[labels], "predicted": names[predictions], "confidence": confidences})
    return table.sort_values("confidence", ascending=False, kind="stable")


def confusions(outcomes: pd.DataFrame) -> pd.DataFrame:
    """How many "images" of each "given" class are "predicted" as each, the most first; of pairs that occur."""
    return outcomes.value_counts(["given", "predicted"]).reset_index(name="images")


def calibration(outcomes: pd.DataFrame) -> Reliability:
    right = outcomes["given"] == outcomes["predicted"]
    return reliability_of(torch.tensor(outcomes["confidence"].to_numpy()), torch.tensor(right.to_numpy(bool)))


def interval(hits: int, of: int) -> list[float]:
    """The 95 % confidence interval of a share (Wilson 1927), which has a width also where all are right."""
    from scipy.stats import binomtest

    return list(binomtest(hits, of).proportion_ci(LEVEL, "wilson"))


def by_class(outcomes: pd.DataFrame, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """[{"class", "images", "precision", "recall", "f1", "confused_with", what most of its errors are taken for, and
    "confused_images", how many}]. What is not defined is None: all of a class without images, and the precision of one
    that is never predicted."""
    from sklearn.metrics import precision_recall_fscore_support

    columns = outcomes["given"], outcomes["predicted"]
    *shares, images = precision_recall_fscore_support(*columns, labels=class_names, zero_division=np.nan)
    table = pd.DataFrame({"class": class_names, "images": images.astype(int), **dict(zip(SHARES, shares))})
    table.loc[images == 0, SHARES] = np.nan
    wrong = confusions(outcomes).query("given != predicted").drop_duplicates("given").set_index("given")
    wrong = wrong.set_axis(["confused_with", "confused_images"], axis=1).astype({"confused_images": "Int64"})
    table = table.join(wrong, on="class").astype(object)
    return table.where(table.notna(), None).to_dict("records")


def compare(outcomes: pd.DataFrame) -> dict[str, Any]:
    """Two classifiers on the same images: the difference of their accuracies (ours less the other's), with a bootstrap
    interval, and whether chance alone may bring it about (McNemar 1947, exact): then of the images that only one of
    them has right as many are the one's as the other's."""
    from scipy.stats import binomtest

    ours, theirs = (outcomes["given"] == outcomes[who] for who in ("predicted", "other_predicted"))
    n, hits, ahead, behind = len(outcomes), *(int(x.sum()) for x in (theirs, ours & ~theirs, theirs & ~ours))
    # Of n images drawn anew, so many are of each kind: more, drawing the images does not tell.
    drawn = np.random.default_rng(0).multinomial(n, np.array([ahead, behind, n - ahead - behind]) / n, RESAMPLES) / n
    ends = np.quantile(drawn[:, 0] - drawn[:, 1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {
        "accuracy": hits / n, "accuracy_interval": interval(hits, n), "difference": (ahead - behind) / n,
        "difference_interval": ends.tolist(), "only_ours_right": ahead, "only_theirs_right": behind,
        "p_value": float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0,
    }  # fmt: skip
