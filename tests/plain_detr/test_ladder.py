"""The ladder's command at the smallest size, and its table."""

import json

import pytest

from benchmarks.ladder import RUNGS, Result, main, overrides, parse_args, write_table
from d2x.config.keys import get_base_cfg
from tests.plain_detr.builders import tiny_config


@pytest.fixture
def config(tmp_path):
    cfg = get_base_cfg()
    cfg.merge_from_other_cfg(_known(tiny_config(), cfg))
    cfg.MODEL.PLAIN_DETR.NUM_CLASSES = 0
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_tiny_train",), ("shapes_tiny_val",)
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 0, 2, 2
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR = "AdamW", 1e-3
    cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS, cfg.TEST.EVAL_PERIOD = (), 0, 2
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.TEST.BATCH_SIZE = (64,), 64, 16
    path = tmp_path / "tiny.yaml"
    path.write_text(cfg.dump())
    return path


def _known(cfg, base):
    """The part of a config whose keys the other has."""
    for key in list(cfg):
        if key not in base:
            del cfg[key]
    return cfg


def test_two_iterations_then_cached_then_refused(config, tmp_path, capsys):
    words = ["--config-file", str(config), "--output", str(tmp_path / "out"), "--seeds", "3", "--rungs", "boxrpb"]
    (first,) = main(words)
    assert first.iterations == 2 and set(first.scores) == {"AP", "AP50", "AP75"}
    assert {"ladder.md", "ladder.png", "ladder.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "| + BoxRPB |" in capsys.readouterr().out
    stamp = (tmp_path / "out/boxrpb_seed3/model_final.pth").stat().st_mtime_ns
    (again,) = main(words)
    assert again == first
    assert (tmp_path / "out/boxrpb_seed3/model_final.pth").stat().st_mtime_ns == stamp
    settings = json.loads((tmp_path / "out/boxrpb_seed3/ladder_settings.json").read_text())
    assert settings["overrides"]["MODEL.PLAIN_DETR.BOX_CODER"] == "sigmoid"
    with pytest.raises(ValueError, match="holds a run of other settings"):
        main([*words, "--set", "SOLVER.BASE_LR", "0.01"])


def test_a_failing_run_is_one_error_with_its_last_line(config, tmp_path):
    words = ["--config-file", str(config), "--output", str(tmp_path / "out"), "--seeds", "0", "--rungs", "delta"]
    with pytest.raises(ValueError, match=r"delta_seed0 failed: error: .*no_such_set"):
        main([*words, "--set", "DATASETS.TRAIN", "('no_such_set',)"])


def test_rungs_have_known_keys_win_over_the_users_and_share_the_anchors(config):
    given = {"MODEL.PLAIN_DETR.PROPOSALS.ANCHOR_SIZE": "16.0", "MODEL.PLAIN_DETR.BOX_RPB.KIND": "full"}
    found = {}
    for rung in RUNGS:
        keys = overrides(rung, str(config), given)
        cfg = get_base_cfg()
        cfg.merge_from_list([word for pair in keys.items() for word in pair])
        node = cfg.MODEL.PLAIN_DETR
        found[rung] = node.BOX_RPB.KIND, node.BOX_CODER, node.PROPOSALS.ANCHOR_SIZE, node.LOSS.BOX_WEIGHT
    assert found == {
        "absolute": ("none", "sigmoid", 0.125, 5.0),
        "boxrpb": ("axial", "sigmoid", 0.125, 5.0),
        "delta": ("axial", "delta", 16.0, 1.0),
    }


def test_table_has_mean_and_spread(tmp_path):
    curve = ([0], [1.0])
    results = [
        Result("absolute", seed, {"AP": ap, "AP50": 2 * ap, "AP75": 0.0}, curve, 10, 5.0)
        for seed, ap in ((0, 20.0), (1, 22.0), (2, 24.0))
    ]
    text = write_table(results, tmp_path / "t.md", "quickstart.yaml")
    assert "| absolute position | 22.0 ± 2.0 | 44.0 ± 4.0 | 0.0 ± 0.0 | 20.0, 22.0, 24.0 | 10 | 5 |" in text
    assert (tmp_path / "t.md").read_text() == text


def test_arguments():
    assert parse_args([]).seeds == [0, 1, 2]
    with pytest.raises(ValueError, match="KEY VALUE pairs"):
        parse_args(["--set", "SEED"])
