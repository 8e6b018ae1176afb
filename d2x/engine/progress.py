"""Training progress as one line."""

from detectron2.engine import HookBase
from tqdm import tqdm


class ProgressBar(HookBase):
    """A tqdm bar with the smoothed total loss and the latest AP, when there is one."""

    def before_train(self) -> None:
        self._bar = tqdm(total=self.trainer.max_iter, initial=self.trainer.start_iter, desc="train", unit="it")

    def after_step(self) -> None:
        self._bar.update()
        if (self.trainer.iter + 1) % 20 == 0:
            latest = self.trainer.storage.histories()
            shown = {}
            if "total_loss" in latest:
                shown["loss"] = f"{latest['total_loss'].median(20):.3f}"
            if "bbox/AP" in latest:
                shown["AP"] = f"{latest['bbox/AP'].latest():.1f}"
            self._bar.set_postfix(shown, refresh=False)

    def after_train(self) -> None:
        self._bar.close()
