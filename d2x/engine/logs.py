"""Console and file logs of a run."""

import logging

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from d2x.detectors import detector_packages


def setup_logs(output_dir: str, *, quiet: bool = False) -> None:
    """Write logs to ``output_dir/log.txt``; ``quiet`` leaves only warnings on the console.

    Call it before detectron2's ``default_setup``, which then finds these handlers and adds none.
    """
    logging.raiseExceptions = False  # python's switch: a full disk must not print a traceback for every line of the log
    rank = comm.get_rank()
    packages = ["fvcore", "d2x", *detector_packages()]
    loggers = [setup_logger(output_dir, distributed_rank=rank, name=name) for name in packages]
    loggers.append(setup_logger(output_dir, distributed_rank=rank))
    if quiet:
        for logger in loggers:
            for handler in logger.handlers:
                if type(handler) is logging.StreamHandler:
                    handler.setLevel(logging.WARNING)
