"""Comparison of an exported model's detections with PyTorch's, one by one."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from d2x.deploy.infer import Detections

# A detection this close to the last score kept may be cut off on one side only.
CUT_OFF = 1e-4

# Neighbouring cells of a heatmap this close in score may take turns at being the peak. More ties than this share of the
# detections are no accident.
TIED = 1e-6
MAX_TIES = 1e-3


class Tolerance(NamedTuple):
    """Largest differences allowed: of scores, and of box corners in pixels of the image."""

    score: float = 1e-4
    box: float = 0.05


DEFAULT = Tolerance()


class Comparison(NamedTuple):
    """Worst differences over some images.

    Attributes:
        images, detections: how many were compared.
        score: largest difference of scores.
        box: largest difference of a corner coordinate, pixels of the image.
        unmatched: detections of one side without a partner of the same class on the other.
        ties: detections left out of the above: elsewhere, or missing, on the other side, which has its score to 1e-6.
        where: name of the image with the largest difference, relative to the tolerances.
    """

    images: int = 0
    detections: int = 0
    score: float = 0.0
    box: float = 0.0
    unmatched: int = 0
    ties: int = 0
    where: str = ""

    def within(self, tolerance: Tolerance) -> bool:
        """Whether nothing is unmatched, no difference exceeds its tolerance, and ties are few."""
        few_ties = self.ties <= max(1, MAX_TIES * self.detections)
        return not self.unmatched and few_ties and self.score <= tolerance.score and self.box <= tolerance.box

    def __str__(self) -> str:
        return (
            f"{self.images} images, {self.detections} detections: worst score difference {self.score:.2e},"
            f" worst box difference {self.box:.4f} px, {self.unmatched} without a partner, {self.ties} ties"
            + (f" (worst in {self.where})" if self.where else "")
        )


def compare(
    expected: Detections, actual: Detections, *, limit: int, tolerance: Tolerance = DEFAULT, name: str = ""
) -> Comparison:
    """Pair the detections of one image so that the differences are smallest, and measure them.

    Args:
        expected: by PyTorch.
        actual: by the exported model.
        limit: most detections that either side gives: past it, near-equal scores may have cut off different ones.
        tolerance: of boxes; a pair further apart may be a tie.
        name: of the image.
    """
    score = box = 0.0
    pairs = ties = 0
    sides = (expected, actual)
    alone = [np.ones(len(side.scores), dtype=bool) for side in sides]
    for label in np.union1d(expected.classes, actual.classes):
        mine, theirs = np.flatnonzero(expected.classes == label), np.flatnonzero(actual.classes == label)
        by_score = np.abs(expected.scores[mine, None] - actual.scores[None, theirs])
        by_box = np.abs(expected.boxes[mine, None] - actual.boxes[None, theirs]).max(axis=-1)
        rows, columns = linear_sum_assignment(by_box + by_score * 1e3)
        kept = _are_partners(expected.boxes[mine[rows]], by_box[rows, columns])
        tied = (by_box[rows, columns] > tolerance.box) & (by_score[rows, columns] <= TIED)
        rows, columns = rows[kept & ~tied], columns[kept & ~tied]
        alone[0][mine[rows]] = alone[1][theirs[columns]] = False
        pairs += len(rows)
        score = max(score, by_score[rows, columns].max(initial=0.0))
        box = max(box, by_box[rows, columns].max(initial=0.0))
    # At least half full: boxes that were empty are missing from what was once the whole list.
    full = [side.scores.min(initial=np.inf) for side in sides if 2 * len(side.scores) >= limit]
    unmatched = 0
    for side, other, without_partner in zip(sides, sides[::-1], alone):
        without_partner = without_partner & (side.scores > max(full, default=0.0) + CUT_OFF)
        same = np.abs(side.scores[without_partner, None] - other.scores[None]) <= TIED
        same &= side.classes[without_partner, None] == other.classes[None]
        ties += int(same.any(axis=1).sum())
        unmatched += int((~same.any(axis=1)).sum())
    return Comparison(1, pairs, float(score), float(box), unmatched, ties, name)


def merge(first: Comparison, second: Comparison, tolerance: Tolerance) -> Comparison:
    """The comparison of both sets of images together."""

    def badness(comparison: Comparison) -> tuple[float, float]:
        return comparison.unmatched, max(comparison.score / tolerance.score, comparison.box / tolerance.box)

    return Comparison(
        first.images + second.images,
        first.detections + second.detections,
        max(first.score, second.score),
        max(first.box, second.box),
        first.unmatched + second.unmatched,
        first.ties + second.ties,
        max(first, second, key=badness).where,
    )


def _are_partners(boxes: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """Whether two boxes are near enough to be one object's: within a quarter of its longer side, or two pixels."""
    return differences <= np.maximum(2.0, 0.25 * (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0.0))
