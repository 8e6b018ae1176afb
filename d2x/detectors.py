"""Registry of detectors: what the trainer, the tools and the exporter ask of each.

``register_detector`` is all that a new detector needs: no file of this project changes. Its package is found by an
entry point, ``--plugin`` or the config key ``PLUGINS`` (``d2x.config.plugins``).
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from detectron2.config import CfgNode
from detectron2.data.transforms import Augmentation
from detectron2.engine import HookBase
from torch import nn

from d2x.config.keys import declare_keys


class Recipe(Protocol):
    """How a detector is trained: a module, or any object, with these names."""

    @property
    def CLASS_COUNT_KEY(self) -> str:
        """The config key of the class count, whose 0 stands for the data set's."""
        ...

    def train_augmentations(self, cfg: CfgNode) -> list[Augmentation]:
        """detectron2 augmentations, in order."""
        ...

    def test_augmentations(self, cfg: CfgNode) -> list[Augmentation]:
        """The resize of evaluation and inference."""
        ...

    def param_groups(self, cfg: CfgNode, model: nn.Module) -> list[dict]:
        """Optimizer groups, ``[{"params": [...], "lr": ..., "weight_decay": ...}]``."""
        ...

    def extra_hooks(self, cfg: CfgNode, model: nn.Module) -> list[HookBase]:
        """Hooks besides the trainer's own; ``model`` is not wrapped in DDP."""
        ...


class Deployment(Protocol):
    """How a detector is exported: a module, or any object, with these names."""

    @property
    def FORMS(self) -> Sequence[str]:
        """The forms it can give, keys of ``d2x.deploy.manifest.OUTPUTS``; the first is the default."""
        ...

    def build_graph(self, model: Any, form: str) -> Any:
        """A ``d2x.deploy.graph.DetectionGraph`` on the detector in evaluation mode."""
        ...

    def test_resize(self, cfg: CfgNode) -> dict:
        """The test-time resize as ``d2x.deploy.resize`` describes it."""
        ...


class Detector(NamedTuple):
    """What was registered for one meta-architecture; ``package`` is the top-level one that did so."""

    recipe: Recipe
    deployment: Deployment | None
    package: str


_DETECTORS: dict[str, Detector] = {}


def register_detector(
    name: str,
    *,
    recipe: Recipe,
    config: Callable[[CfgNode], None] | None = None,
    deployment: Deployment | None = None,
) -> None:
    """Make a meta-architecture of detectron2's registry known to every tool.

    Args:
        name: ``MODEL.META_ARCHITECTURE`` of its configs.
        recipe: how it is trained.
        config: declares its config keys on detectron2's defaults; it may be the same for several detectors.
        deployment: how it is exported; None where it cannot be.

    Raises:
        ValueError: the name is taken by another detector.
    """
    module = recipe.__name__ if isinstance(recipe, ModuleType) else type(recipe).__module__
    detector = Detector(recipe, deployment, module.partition(".")[0])
    if _DETECTORS.get(name, detector) != detector:
        raise ValueError(f"a detector named '{name}' is registered already")
    _DETECTORS[name] = detector
    if config is not None:
        declare_keys(config)


def get_recipe(name: str) -> Recipe:
    """How the detector of a meta-architecture is trained.

    Raises:
        ValueError: nothing was registered under that name.
    """
    return _get(name).recipe


def get_deployment(name: str) -> Deployment:
    """How the detector of a meta-architecture is exported.

    Raises:
        ValueError: nothing was registered under that name, or without a deployment.
    """
    deployment = _get(name).deployment
    if deployment is None:
        known = ", ".join(sorted(other for other, detector in _DETECTORS.items() if detector.deployment is not None))
        raise ValueError(f"MODEL.META_ARCHITECTURE '{name}' cannot be exported; these can: {known}")
    return deployment


def _get(name: str) -> Detector:
    if name not in _DETECTORS:
        known = ", ".join(sorted(_DETECTORS)) or "none: is this project installed? (pip install -e .)"
        raise ValueError(
            f"MODEL.META_ARCHITECTURE '{name}' is no registered detector; known: {known}"
            " (--plugin PACKAGE adds those of another package)"
        )
    return _DETECTORS[name]


def detector_packages() -> list[str]:
    """The packages that detectors come from, for loggers and messages."""
    return sorted({detector.package for detector in _DETECTORS.values()})


def class_count(cfg: CfgNode) -> int:
    """Class count in the config of its meta-architecture; 0 stands for the data set's."""
    parent, name = _class_count_node(cfg)
    return parent[name]


def set_class_count(cfg: CfgNode, count: int) -> None:
    """Write the class count."""
    parent, name = _class_count_node(cfg)
    parent[name] = count


def _class_count_node(cfg: CfgNode) -> tuple[CfgNode, str]:
    *path, name = get_recipe(cfg.MODEL.META_ARCHITECTURE).CLASS_COUNT_KEY.split(".")
    for part in path:
        cfg = cfg[part]
    return cfg, name
