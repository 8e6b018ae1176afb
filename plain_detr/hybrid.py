"""Hybrid matching: a second group of queries that trains on every box several times (Jia et al., H-DETR, CVPR 2023).

The one-to-one group is the detector. The one-to-many group shares all weights with it, never attends to it, is
matched against each box ``repeats`` times, and does not exist at inference.
"""

from typing import NamedTuple

from plain_detr.predictions import BoxSetPrediction


class QueryGroups(NamedTuple):
    """Sizes of the two groups, and how the second is trained.

    Attributes:
        one_to_one: queries each of which may match one box.
        one_to_many: extra queries in training; 0 turns the group off.
        repeats: times each box is offered to the one-to-many group; 0 leaves it without losses.
        weight: factor of that group's losses.
    """

    one_to_one: int
    one_to_many: int = 0
    repeats: int = 6
    weight: float = 1.0

    def sizes(self, training: bool) -> list[int]:
        """Queries of each group that is computed."""
        return [self.one_to_one, self.one_to_many] if training and self.one_to_many else [self.one_to_one]


class MatchTask(NamedTuple):
    """One set of predictions to be matched and scored.

    Attributes:
        prediction: the set.
        suffix: of its losses' names, e.g. "_d0", "_enc", "_d5_o2m".
        repeats: times each box is offered.
        weight: factor of its losses.
        class_agnostic: True: every box counts as class 0.
    """

    prediction: BoxSetPrediction
    suffix: str
    repeats: int = 1
    weight: float = 1.0
    class_agnostic: bool = False


def match_tasks(
    layers: list[BoxSetPrediction],
    proposals: BoxSetPrediction | None,
    groups: QueryGroups,
    *,
    class_aware_proposals: bool = False,
) -> list[MatchTask]:
    """Every set of predictions of a training step: the one-to-one group, the proposals, the one-to-many group."""
    parts = [layer.split(groups.one_to_one) for layer in layers]
    tasks = [MatchTask(first, f"_d{index}") for index, (first, _) in enumerate(parts)]
    if proposals is not None:
        tasks.append(MatchTask(proposals, "_enc", class_agnostic=not class_aware_proposals))
    if groups.one_to_many and groups.repeats:
        tasks += [
            MatchTask(rest, f"_d{index}_o2m", groups.repeats, groups.weight) for index, (_, rest) in enumerate(parts)
        ]
    return tasks
