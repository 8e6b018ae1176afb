"""Interface of loss transforms, applied to a model's losses before they are summed and back-propagated."""

from torch import Tensor


class LossTransform:
    """Base of loss transforms, called with the model's loss dict; a subclass overrides what it needs.

    Attributes:
        forbids_step: whether the last batch asks for no optimizer step.
        non_finite: names of the last call's losses that were not finite and are dealt with; they are not logged.
    """

    forbids_step: bool = False
    non_finite: frozenset[str] = frozenset()

    def __call__(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss dict -> loss dict with the same keys."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        """What a checkpoint keeps of it."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Undo ``state_dict``."""
