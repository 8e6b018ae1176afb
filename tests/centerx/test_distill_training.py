"""Students in the trainer: checked at start-up, adaptive losses, resumed, and checkpoints without teachers."""

from pathlib import Path

import pytest
import torch

import centerx  # noqa: F401  (registers its models and recipe)
from d2x.config.load import load_cfg
from d2x.data.prepare import prepare_data
from d2x.engine.trainer import Trainer

CONFIG = Path(__file__).resolve().parents[2] / "projects/CenterX/configs/quickstart.yaml"
TINY = [
    *("DATASETS.TRAIN", "('shapes_tiny_train',)", "DATASETS.TEST", "('shapes_tiny_val',)"),
    *("SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "1", "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.IMS_PER_BATCH", "2"),
    *("TEST.EVAL_PERIOD", "0", "MODEL.SMALL_RESNET.WIDTHS", "[4,8,12,16]", "WEIGHT_AVERAGING.ENABLED", "False"),
    *("MODEL.CENTERNET.HEAD_CHANNELS", "8", "MODEL.CENTERNET.NECK.CHANNELS", "[16,8,8]"),
]


def config(output: Path, *opts: str):
    cfg = prepare_data(load_cfg(str(CONFIG), [*TINY, "OUTPUT_DIR", str(output), *opts]))
    output.mkdir(exist_ok=True)
    (output / "config.yaml").write_text(cfg.dump())
    return cfg


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    cfg = config(folder)
    trainer = Trainer(cfg)
    trainer.checkpointer.save("model_final")
    return folder


def distilled(teacher: Path, output: Path, *opts: str):
    entry = {"CONFIG": str(teacher / "config.yaml"), "WEIGHTS": str(teacher / "model_final.pth")}
    return config(output, "MODEL.META_ARCHITECTURE", "DistilledCenterNet", "DISTILL.TEACHERS", str([entry]), *opts)


def test_training_with_every_option_and_resuming(teacher, tmp_path):
    opts = ["ADAPTIVE_LOSS.ENABLED", "True", "DISTILL.EMA.ENABLED", "True", "SOLVER.ACCUMULATE", "2"]
    opts += ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "bfloat16", "DISTILL.WARM_START", "0"]
    trainer = Trainer(distilled(teacher, tmp_path / "student", *opts))
    trainer.resume_or_load(resume=False)
    trainer.train()
    weights = trainer._trainer.loss_transforms[0].weights
    assert {"kd_cls_loss0", "kd_wh_loss0", "loss_cls"} <= set(weights)
    saved = torch.load(tmp_path / "student" / "model_final.pth", weights_only=True)
    plain = torch.load(teacher / "model_final.pth", weights_only=True)
    assert set(saved["model"]) == set(plain["model"])

    resumed = Trainer(distilled(teacher, tmp_path / "student", *opts, "SOLVER.MAX_ITER", "3"))
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2 and resumed.model.ema_teacher.steps == 2
    resumed.train()
    assert resumed.model.ema_teacher.steps == 3


def test_class_names_come_from_the_teachers_run(teacher, tmp_path):
    trainer = Trainer(distilled(teacher, tmp_path / "student"))
    assert trainer.model.teachers[0].class_names == ["ellipse", "rectangle", "triangle", "star"]


@pytest.mark.parametrize(
    "change, kind, message",
    [
        (lambda entry: entry.update(WEIGHTS="gone.pth"), FileNotFoundError, "of teacher .* not found: gone.pth"),
        (lambda entry: entry.update(CONFIG="gone.yaml"), FileNotFoundError, "config file not found: gone.yaml"),
        (lambda entry: entry.update(CLASSES=["dog"]), ValueError, "teacher .*: class 'dog' is not one of its classes"),
        (lambda entry: entry.update(WIEGHT=1), ValueError, r"TEACHERS\[0\]: unknown key 'WIEGHT'; did you mean WEIGHT"),
        (lambda entry: entry.pop("WEIGHTS"), ValueError, r"DISTILL.TEACHERS\[0\]: WEIGHTS is missing"),
    ],
)
def test_wrong_teachers_end_before_training(teacher, tmp_path, change, kind, message):
    entry = {"CONFIG": str(teacher / "config.yaml"), "WEIGHTS": str(teacher / "model_final.pth")}
    change(entry)
    with pytest.raises(kind, match=message):
        Trainer(
            config(
                tmp_path / "student",
                *("MODEL.META_ARCHITECTURE", "DistilledCenterNet", "DISTILL.TEACHERS", str([entry])),
            )
        )


def test_weights_of_another_network_are_named(teacher, tmp_path):
    narrow = config(tmp_path / "other", "MODEL.CENTERNET.HEAD_CHANNELS", "4")
    Trainer(narrow).checkpointer.save("model_final")
    entry = {"CONFIG": str(teacher / "config.yaml"), "WEIGHTS": str(tmp_path / "other" / "model_final.pth")}
    cfg = distilled(teacher, tmp_path / "student")
    cfg.DISTILL.TEACHERS = [entry]
    with pytest.raises(ValueError, match="other/model_final.pth: not the weights of teacher .*config.yaml: head"):
        Trainer(cfg)


def test_label_free_needs_images_without_annotations(teacher, tmp_path):
    cfg = distilled(teacher, tmp_path / "student", "DISTILL.LABELS", "False")
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    with pytest.raises(ValueError, match="DISTILL.LABELS False needs DATALOADER.FILTER_EMPTY_ANNOTATIONS False"):
        Trainer(cfg)


def test_label_free_on_folders_of_images(teacher, tmp_path):
    from detectron2.data import DatasetCatalog

    folder = str(Path(DatasetCatalog.get("shapes_tiny_val")[0]["file_name"]).parent)
    cfg = distilled(
        teacher, tmp_path / "student", "DISTILL.LABELS", "False", "DATASETS.TRAIN_SOURCES", str([folder, folder])
    )
    trainer = Trainer(cfg)
    trainer.train()
    assert set(trainer.storage.latest()) >= {"kd_cls_loss0", "kd_wh_loss0", "kd_off_loss0"}
    assert "loss_cls" not in trainer.storage.latest()
