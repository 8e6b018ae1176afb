"""Exact batch-norm statistics before an evaluation, the same whether a run was interrupted or not."""

from typing import Any

from detectron2.engine import hooks


class RepeatablePreciseBN(hooks.PreciseBN):
    """detectron2's hook (``TEST.PRECISE_BN``), with the first batches of the run's data order at every call.

    detectron2's goes on in the data where its last call has ended, which no checkpoint holds.

    Args: see detectron2's; the loader must be one of ``build_train_loader``.
    """

    trainer: Any  # detectron2's, with ``seed``

    def update_stats(self) -> None:
        if not self._disabled:
            self._data_loader.batch_sampler.seed = self._data_loader.dataset.seed = self.trainer.seed
            self._data_iter = None
        super().update_stats()
