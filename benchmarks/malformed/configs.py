"""Malformed configs: yaml files and KEY VALUE pairs, loaded, resolved, and built on the meta device if they pass."""

import copy
import random
from functools import lru_cache
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from torch.overrides import TorchFunctionMode

from benchmarks.malformed.cases import CANARY, USER_ERRORS, Broken, Case
from benchmarks.malformed.mutate import NASTY, damage_bytes, damage_tree
from d2x.config.keys import get_base_cfg
from d2x.config.load import load_cfg
from d2x.data.prepare import prepare_data
from d2x.engine.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "projects" / "CenterX" / "configs" / "quickstart.yaml"
VALUES = ["(", "((((((((((", "[1,", "{'a': 1}", "None", "()", "(1,)", "('x',)", "1e999", "-1", "0", "nan", "True", "''"]
WORDS = ["--resume", "SOLVER", "SOLVER.BASE_LR.X", "X.Y", "", ".", "_BASE_", "SOLVER..BASE_LR", "VERSION"]


def make(rng: random.Random, folder: Path) -> Case:
    kind = rng.choice(("overrides", "overrides", "text", "values", "values", "code", "bases"))
    if kind == "overrides":
        words = _overrides(rng)
        return Case("KEY VALUE pairs", "", lambda: _run(str(QUICKSTART), words))
    path = folder / "config.yaml"
    tree = {"_BASE_": str(QUICKSTART), **copy.deepcopy(_tree())}
    if kind == "text":
        path.write_bytes(damage_bytes(rng, yaml.safe_dump(tree).encode()))
    elif kind == "values":
        _dump(damage_tree(rng, tree), path)
    elif kind == "code":
        path.write_text(rng.choice(CODE).format(folder / CANARY))
    else:
        path.write_text(rng.choice(BASES).format(path))
    return Case(f"yaml {kind}", "config.yaml" if kind == "code" else "", lambda: _run(str(path), []))


CODE = [
    '!!python/object/apply:os.system ["touch {}"]',
    'SOLVER: !!python/object/apply:os.system ["touch {}"]',
    "SEED: !!python/object/apply:eval [\"open('{}', 'w')\"]",
    'SEED: !!python/object/new:subprocess.Popen [["touch", "{}"]]',
    "SEED: !!python/name:os.system",
    'OUTPUT_DIR: !!python/object/apply:pathlib.Path ["{}"]',
]
BASES = [
    "_BASE_: {0}\n",  # itself
    "_BASE_: nowhere/config.yaml\n",
    "_BASE_: /\n",
    "_BASE_: 5\n",
    "_BASE_: [[1]]\n",
    "_BASE_:\n",
    "_BASE_: [config.yaml, config.yaml]\n",
    "SEED:\n- &a [x, x]\n- &b [*a, *a, *a, *a, *a, *a]\n- &c [*b, *b, *b, *b, *b, *b]\n- [*c, *c, *c, *c, *c, *c]\n",
    "{{{{{{",
    "[1, 2]\n",
    "5\n",
    "",
    "VERSION: 1\n",
    "VERSION: 99\n",
    "VERSION: x\n",
]


def _overrides(rng: random.Random) -> list[str]:
    keys = _keys()
    words: list[str] = []
    for _ in range(rng.choice((1, 1, 2))):
        key = rng.choice(keys) if rng.random() < 0.85 else rng.choice(WORDS)
        if rng.random() < 0.1 and key:
            key = key[:-1] + rng.choice("XyZ")
        value = rng.choice(VALUES) if rng.random() < 0.6 else repr(rng.choice(NASTY))
        words += [key, value]
    return words[:-1] if rng.random() < 0.05 else words


def _run(config_file: str, words: list[str]) -> str:
    cfg = prepare_data(_load(config_file, words))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"), RatesOnCpu():
        model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    Trainer.build_lr_scheduler(cfg, optimizer)
    return "accepted"


def _load(config_file: str, words: list[str]) -> CfgNode:
    """Load; what is wrong with the file as such must be said with its name, later only the key matters."""
    try:
        return load_cfg(config_file, words)
    except USER_ERRORS as error:
        if not words and Path(config_file).name not in str(error) and not any(key in str(error) for key in _all_keys()):
            raise Broken(f"the message names neither the file nor a key: {error}") from error
        raise


class RatesOnCpu(TorchFunctionMode):
    """``linspace`` makes values even below ``torch.device("meta")``: backbones read drop rates from it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **{**(kwargs or {}), **({"device": "cpu"} if function is torch.linspace else {})})


def _dump(tree, path: Path) -> None:
    path.write_text(yaml.safe_dump(tree, allow_unicode=False), encoding="utf-8", errors="replace")


@lru_cache
def _tree() -> dict:
    """Some keys of every kind."""
    return {
        "DATASETS": {"TRAIN": ["shapes_train"], "TEST": ["shapes_val"], "CLASS_NAMES": []},
        "DATALOADER": {"NUM_WORKERS": 0, "FILTER_EMPTY_ANNOTATIONS": True},
        "INPUT": {"MIN_SIZE_TRAIN": [128], "FORMAT": "RGB"},
        "MODEL": {"META_ARCHITECTURE": "CenterNet", "PIXEL_MEAN": [1.0, 2.0, 3.0], "DEVICE": "cpu"},
        "SOLVER": {"BASE_LR": 0.01, "MAX_ITER": 100, "STEPS": [], "IMS_PER_BATCH": 8, "AMP": {"ENABLED": False}},
        "SEED": 1,
        "OUTPUT_DIR": "output/x",
    }


@lru_cache
def _keys() -> list[str]:
    """Those that this project reads: its own groups and the sections that every run uses."""
    sections = (
        "DATASETS.",
        "DATALOADER.",
        "INPUT.",
        "SOLVER.",
        "MODEL.CENTERNET.",
        "MODEL.BACKBONE.",
        "SEED",
        "VERSION",
    )
    return [key for key in _all_keys() if key.startswith(sections)]


@lru_cache
def _all_keys() -> list[str]:
    flat: list[str] = []

    def walk(node: CfgNode, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, CfgNode):
                walk(value, f"{prefix}{key}.")
            else:
                flat.append(prefix + key)

    walk(get_base_cfg(), "")
    return flat
