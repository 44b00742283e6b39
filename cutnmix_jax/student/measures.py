"""How well a classifier did on labelled images, and how alike two classifiers are; numpy alone, in float64.

M images, K classes, J networks, D and E features.
"""

from typing import NamedTuple

import numpy as np

NUM_BINS = 15  # as in the tables of Guo et al. 2017
TOP = 5


class Bins(NamedTuple):
    """The images, sorted by how sure the classifier was: 15 bins of equal width, (0, 1/15] to (14/15, 1].

    Attributes:
      counts: [15] int64, images in each bin; they sum to M.
      confidence: [15] float64, mean of the highest probability; nan where the bin is empty.
      accuracy: [15] float64, share of the images that are classified right; nan where the bin is empty.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


class Measured(NamedTuple):
    """How well a classifier did on M labelled images.

    The predicted class is the one with the highest score, the first of them where scores are equal.

    Attributes:
      accuracy: share of the images whose predicted class is their label.
      top5: share of the images for which fewer than five classes score higher than the label; None where K <= 5.
      nll: mean negative log-likelihood of the labels, in nats.
      ece: expected calibration error in [0, 1] (Guo et al. 2017, arXiv 1706.04599, Eq. 3).
      per_class: [K] float64, accuracy on the images of each class; nan where a class has no image.
      confusion: [K, K] int64, number of images by true class (row) and predicted class (column).
      bins: what `ece` is made of.
    """

    accuracy: float
    top5: float | None
    nll: float
    ece: float
    per_class: np.ndarray
    confusion: np.ndarray
    bins: Bins


def measure(logits: np.ndarray, labels: np.ndarray) -> Measured:
    """Measures a classifier on labelled images.

    Args:
      logits: [M, K] real, finite; M and K are at least 1.
      labels: [M] integers in [0, K).

    Returns:
      What was measured; the arithmetic is float64, whatever the type of the logits.

    Raises:
      ValueError: the shapes do not fit, there is no image, a logit is not finite, or a label is no class.
    """
    logits, labels = _checked(logits, labels)
    count, num_classes = logits.shape
    predicted = logits.argmax(axis=1)
    right = predicted == labels
    of_label = np.take_along_axis(logits, labels[:, None], axis=1)
    higher = (logits > of_label).sum(axis=1)

    highest = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - highest).sum(axis=1)
    nll = np.log(total) + (highest - of_label)[:, 0]
    # The exponential of the highest is 1, and 1 / total is exactly 1/K where all scores are equal.
    bins = _bins(1 / total, right)

    confusion = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    confusion = confusion.reshape(num_classes, num_classes)
    return Measured(
        accuracy=int(right.sum()) / count,
        top5=int((higher < TOP).sum()) / count if num_classes > TOP else None,
        nll=float(nll.mean()),
        ece=_calibration_error(bins),
        per_class=_ratio(confusion.diagonal(), confusion.sum(axis=1)),
        confusion=confusion,
        bins=bins,
    )


def agreement(predicted: np.ndarray) -> np.ndarray:
    """The share of the images on which two networks say the same class, right or wrong.

    Args:
      predicted: [J, M] integers, the predicted classes of each network; M is at least 1.

    Returns:
      [J, J] float64 in [0, 1], symmetric, 1 on the diagonal.

    Raises:
      ValueError: `predicted` is not of two axes, or there is no image.
    """
    predicted = np.asarray(predicted)
    if predicted.ndim != 2 or predicted.shape[1] == 0:
        raise ValueError(f"predicted is [J, M] with M at least 1, not {list(predicted.shape)}")
    return np.array([(predicted == one).mean(axis=1) for one in predicted]).reshape(2 * predicted.shape[:1])


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment of two representations of the same images.

    || Y^T X ||_F^2 / (|| X^T X ||_F || Y^T Y ||_F) with centred columns (Kornblith et al. 2019, arXiv 1905.00414,
    section 3). It does not change with a rotation, a shift or a scale of either. The products are of features, [D, E],
    so the time grows with M and not with its square.

    Args:
      x: [M, D] real, finite.
      y: [M, E] real, finite; its rows are of the same images.

    Returns:
      A number in [0, 1] but for rounding; nan where x or y is the same for all images: then it is 0 / 0.

    Raises:
      ValueError: they are not of two axes each, M differs, an axis is empty, or a number is not finite.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or 0 in (*x.shape, *y.shape):
        raise ValueError(f"x and y are [M, D] and [M, E], none of them 0, not {list(x.shape)} and {list(y.shape)}")
    _finite(x=x, y=y)
    # Asked before the mean is taken: its rounding would leave something that is not 0.
    if (x == x[0]).all() or (y == y[0]).all():
        return float("nan")
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return float(np.sum((y.T @ x) ** 2) / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def _checked(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[M, K] float64 and [M] int64; raises ValueError where `measure` is not defined for them."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or 0 in logits.shape:
        shapes = f"{list(logits.shape)} and {list(labels.shape)}"
        raise ValueError(f"logits and labels are [M, K] and [M] with M and K at least 1, not {shapes}")
    _finite(logits=logits)
    num_classes = logits.shape[1]
    # A negative label would count from the end.
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels are integers in [0, {num_classes}); not all of these {labels.dtype} are")
    return logits, labels.astype(np.int64)


def _finite(**arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} {list(array.shape)} has numbers that are not finite")


def _bins(confidence: np.ndarray, right: np.ndarray) -> Bins:
    """Sorts [M] confidences in (0, 1] into bins (l, r]; `right` [M] bool says which images are classified right."""
    edges = np.arange(1, NUM_BINS) / NUM_BINS
    where = np.searchsorted(edges, confidence, side="left")
    counts = np.bincount(where, minlength=NUM_BINS)
    sums = (np.bincount(where, weights=each, minlength=NUM_BINS) for each in (confidence, right))
    return Bins(counts, *(_ratio(each, counts) for each in sums))


def _calibration_error(bins: Bins) -> float:
    """sum_b counts_b / M |accuracy_b - confidence_b| (Guo et al. 2017, Eq. 3)."""
    gaps = np.abs(bins.accuracy - bins.confidence)
    return float(np.nansum(bins.counts * gaps) / bins.counts.sum())


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The means of groups; nan for a group of nobody."""
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
