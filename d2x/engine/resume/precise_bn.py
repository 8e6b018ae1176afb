"""Exact batch-norm statistics before an evaluation, the same whether a run was interrupted or not."""

from detectron2.engine import hooks


class RepeatablePreciseBN(hooks.PreciseBN):
    """detectron2's hook (``TEST.PRECISE_BN``), with the first batches of the run's data order at every call.

    detectron2's goes on in the data where its last call has ended, which no checkpoint holds.

    Args:
        hook: detectron2's, of a model that has batch norms; its loader must be one of ``build_train_loader``.
        num_iter: batches.
    """

    def __init__(self, hook: hooks.PreciseBN, num_iter: int):
        super().__init__(hook._period, hook._model, hook._data_loader, num_iter)

    def update_stats(self) -> None:
        if not self._disabled:
            self._data_loader.batch_sampler.seed = self._data_loader.dataset.seed = self.trainer.seed
            self._data_iter = None
        super().update_stats()
