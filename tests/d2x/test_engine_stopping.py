"""Ends before the last iteration, the best weights, and evaluations that were cut short."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import HookBase

import centerx  # noqa: F401
from d2x.checkpoint.fingerprint import differences
from d2x.checkpoint.hooks import PeriodicCheckpoints
from d2x.config.load import load_cfg
from d2x.data.prepare import prepare_data
from d2x.engine.trainer import Trainer
from tests.faults.tiny_run import CONFIGS, SMALL, SOLVER

COUNTING = (
    "TEST.EVAL_PERIOD 2 EARLY_STOP.METRIC bbox/AP EARLY_STOP.PATIENCE 2 CHECKPOINT.KEEP_BEST bbox/AP"
    " SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 30 DATASETS.TEST ('shapes_tiny_val',) CHECKPOINT.KEEP_LAST 0"
).split()


class Scripted(Trainer):
    """A real training whose evaluations give the next of some numbers, or raise it."""

    results: list = []
    evaluated: list = []

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        cls.evaluated.append({name: value.clone() for name, value in model.state_dict().items()})
        result = cls.results[len(cls.evaluated) - 1]
        if isinstance(result, BaseException):
            raise result
        return {"bbox": {"AP": result}}


def trainer(output: Path, results, *opts, resume=False) -> Scripted:
    """A trainer with evaluation results of its own; ``evaluated`` collects the weights that were evaluated."""
    words = [*SOLVER, *SMALL["centerx"], *COUNTING, *opts, "OUTPUT_DIR", str(output)]
    cfg = prepare_data(load_cfg(str(CONFIGS["centerx"]), list(map(str, words))))
    torch.manual_seed(0)
    kind = type("Scripted", (Scripted,), {"results": list(results), "evaluated": []})
    made = kind(cfg)
    made.resume_or_load(resume=resume)
    return made


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def test_early_stop_ends_as_a_full_run_does_and_the_best_weights_are_kept(tmp_path):
    # after iterations 1, 3, 5, 7; at 7 the second without an improvement, so 8 is the last; then the final evaluation
    run = trainer(tmp_path, [1.0, 2.0, 2.0, 1.5, 1.7])
    run.train()
    assert load(tmp_path / "model_final.pth")["iteration"] == 8
    assert len(run.evaluated) == 5
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    best = load(tmp_path / "model_best.pth")
    assert (best["iteration"], best["bbox/AP"]) == (3, 2.0)
    assert differences(best["model"], run.evaluated[1]) == [], "the averaged weights, which were evaluated"
    assert differences(best["model"], load(tmp_path / "model_0000003.pth")["model"]) != []
    # Resuming a run that has ended only evaluates again.
    again = trainer(tmp_path, [1.7], resume=True)
    again.train()
    assert (again.start_iter, again.max_iter, len(again.evaluated)) == (9, 9, 1)
    # More patience was given: it goes on.
    patient = trainer(tmp_path, [3.0] * 20, "EARLY_STOP.PATIENCE", 30, "SOLVER.MAX_ITER", 12, resume=True)
    patient.train()
    assert load(tmp_path / "model_final.pth")["iteration"] == 11


def test_an_evaluation_that_was_cut_short_is_made_up_for(tmp_path):
    whole = trainer(tmp_path / "whole", [1.0, 2.0, 2.0, 1.5, 1.7])
    whole.train()
    cut = trainer(tmp_path / "cut", [1.0, 2.0, KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    resumed = trainer(tmp_path / "cut", [2.0, 1.5, 1.7], resume=True)
    assert resumed.start_iter == 6
    resumed.train()
    assert differences(resumed.evaluated[0], whole.evaluated[2]) == []
    for name in ("model_final.pth", "model_best.pth"):
        assert differences(load(tmp_path / "whole" / name), load(tmp_path / "cut" / name)) == [], name


def test_no_evaluation_is_made_twice(tmp_path):
    stopped = trainer(tmp_path, [1.0, 2.0])
    stopped.register_hooks([Kill(3)])
    stopped.train()  # the signal came after the evaluation, so the checkpoint knows of it
    resumed = trainer(tmp_path, [2.0, 1.5, 1.7], resume=True)
    resumed.train()
    assert load(tmp_path / "model_final.pth")["iteration"] == 8


class Kill(HookBase):
    """Sends this process a signal before a step."""

    def __init__(self, iteration: int, number: int = signal.SIGTERM):
        self._iteration, self._number = iteration, number

    def before_step(self) -> None:
        if self.trainer.iter == self._iteration:
            os.kill(os.getpid(), self._number)


def test_precise_batch_norm_statistics_are_the_same_after_an_interruption(tmp_path):
    # at iterations 1, 3 and 5; the seed is a random one that the checkpoint holds
    opts = ["TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2, "EARLY_STOP.METRIC", "",
            "SOLVER.MAX_ITER", 6, "DATASETS.TEST", "()"]  # fmt: skip
    whole = trainer(tmp_path / "whole", [1.0] * 9, *opts, "SEED", -1)
    whole.train()
    stopped = trainer(tmp_path / "cut", [1.0] * 9, *opts, "SEED", whole.seed)
    stopped.register_hooks([Kill(2)])
    stopped.train()
    resumed = trainer(tmp_path / "cut", [1.0] * 9, *opts, "SEED", -1, resume=True)
    resumed.train()
    ends = [load(tmp_path / name / "model_final.pth") for name in ("whole", "cut")]
    assert any(name.endswith("running_mean") for name in ends[0]["model"])
    assert differences(ends[0]["model"], ends[1]["model"]) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_after_the_step_and_handlers_are_put_back(number, tmp_path):
    before = signal.getsignal(number)
    run = trainer(tmp_path, [], "TEST.EVAL_PERIOD", 0, "EARLY_STOP.METRIC", "", "SOLVER.CHECKPOINT_PERIOD", 100)
    run.register_hooks([Kill(2, number)])
    run.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    assert load(tmp_path / "model_0000002.pth")["iteration"] == 2
    assert run.evaluated == [] and not (tmp_path / "model_final.pth").exists()
    assert signal.getsignal(number) == before


def test_a_metric_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match="EARLY_STOP.METRIC 'bbox/APP' is no result of the evaluation: .*bbox/AP"):
        trainer(tmp_path, [1.0], "EARLY_STOP.METRIC", "bbox/APP").train()


@pytest.mark.parametrize(
    "opts, message",
    [
        (["CHECKPOINT.KEEP_LAST", 1], "CHECKPOINT.KEEP_LAST must be 0"),
        (["EARLY_STOP.PATIENCE", 0], "EARLY_STOP.PATIENCE must be at least 1"),
        (["TEST.EVAL_PERIOD", 0], "set TEST.EVAL_PERIOD"),
        (["HEALTH.MAX_NON_FINITE", -1], "HEALTH.MAX_NON_FINITE must not be negative"),
        (["DATALOADER.SAMPLER_TRAIN", "Other"], "DATALOADER.SAMPLER_TRAIN 'Other' is not one of"),
    ],
)
def test_wrong_options_name_their_key(opts, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, [], *opts)


def test_what_a_killed_process_left_in_the_output_goes(tmp_path):
    names = ["model_0000001.pth.77.tmp", "diagnostics/iteration_0000004/weights.pth.77.tmp", "diagnostics/notes.tmp",
             "another_run/model_0000001.pth.78.tmp"]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    trainer(tmp_path, [])
    assert [(tmp_path / name).exists() for name in names] == [False, False, True, True]


def test_after_the_last_checkpoint_there_is_nothing_left_to_write(tmp_path):
    """A run that is killed between the two files has to write the other one again when it is resumed."""
    written = []
    checkpointer = SimpleNamespace(
        save=lambda name, **more: written.append(name),
        save_weights=lambda name, **more: written.append(name),
        resumable_files=list,
        save_dir="",
    )
    hook = PeriodicCheckpoints(checkpointer, 2, safetensors=True)
    for iteration in range(4):
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=4)
        hook.after_step()
    assert written == ["model_0000001", "model_final.safetensors", "model_final"]


def test_final_and_best_weights_as_safetensors(tmp_path):
    run = trainer(tmp_path, [1.0, 0.0, 0.0, 0.0], "CHECKPOINT.SAFETENSORS", True, "EARLY_STOP.METRIC", "",
                  "SOLVER.MAX_ITER", 5)  # fmt: skip
    run.train()
    loaded = trainer(tmp_path / "other", [], "MODEL.WEIGHTS", tmp_path / "model_final.safetensors")
    assert differences(loaded.model.state_dict(), load(tmp_path / "model_final.pth")["model"]) == []
    assert differences(loaded.checkpointer.load(str(tmp_path / "model_best.safetensors"), []), {}) == []
    assert differences(loaded.model.state_dict(), run.evaluated[0]) == []
