"""Config keys of the backbones, their weight files, and the optimizer groups made for them."""

from detectron2.config import CfgNode as CN

from d2x.backbones.small_resnet import add_small_resnet_config
from d2x.backbones.timm import add_timm_config
from d2x.backbones.torchvision import add_torchvision_config


def add_backbone_config(cfg: CN) -> None:
    """Declare the keys; values are the defaults."""
    add_small_resnet_config(cfg)
    add_timm_config(cfg)
    add_torchvision_config(cfg)

    # Pre-trained weights of the backbone alone: a file (.pth, .bin, .safetensors, .pkl) of any origin that
    # docs/backbones.md lists, or for torchvision's backbones a name like "IMAGENET1K_V1" to download. Read when a
    # training starts from iteration 0 without MODEL.WEIGHTS.
    cfg.MODEL.BACKBONE.WEIGHTS = ""

    cfg.MODEL.SWIN_V2 = CN()
    cfg.MODEL.SWIN_V2.EMBED_DIM = 96  # channels of the first stage
    cfg.MODEL.SWIN_V2.DEPTHS = (2, 2, 18, 2)
    cfg.MODEL.SWIN_V2.NUM_HEADS = (3, 6, 12, 24)
    cfg.MODEL.SWIN_V2.WINDOW_SIZE = 16  # tokens
    # Per stage, the window of pre-training in tokens, which scales the position bias; 0: the window in use.
    cfg.MODEL.SWIN_V2.PRETRAINED_WINDOW_SIZES = (12, 12, 12, 6)
    # Per stage, blocks with attention over the whole map; (-1,): none.
    cfg.MODEL.SWIN_V2.GLOBAL_BLOCKS = ((-1,), (-1,), (-1,), (0, 1))
    cfg.MODEL.SWIN_V2.DROP_PATH = 0.1  # stochastic depth of the last block, linear from 0
    cfg.MODEL.SWIN_V2.OUT_FEATURES = ["p5"]  # among p2 (stride 4) to p5 (stride 32)
    cfg.MODEL.SWIN_V2.ACTIVATION_CHECKPOINTING = False
    # Separate the regions of shifted windows by -100 as the released code does, instead of -inf.
    cfg.MODEL.SWIN_V2.RELEASED_SHIFT_MASK = False

    cfg.MODEL.SWIN_V1 = CN()
    cfg.MODEL.SWIN_V1.EMBED_DIM = 96
    cfg.MODEL.SWIN_V1.DEPTHS = (2, 2, 6, 2)
    cfg.MODEL.SWIN_V1.NUM_HEADS = (3, 6, 12, 24)
    cfg.MODEL.SWIN_V1.WINDOW_SIZE = 7
    cfg.MODEL.SWIN_V1.DROP_PATH = 0.2
    cfg.MODEL.SWIN_V1.OUT_FEATURES = ["p5"]
    cfg.MODEL.SWIN_V1.ACTIVATION_CHECKPOINTING = False

    cfg.MODEL.VIT = CN()
    cfg.MODEL.VIT.EMBED_DIM = 768
    cfg.MODEL.VIT.DEPTH = 12
    cfg.MODEL.VIT.NUM_HEADS = 12
    cfg.MODEL.VIT.PATCH_SIZE = 16  # pixels
    cfg.MODEL.VIT.WINDOW_SIZE = 14  # patches
    cfg.MODEL.VIT.GLOBAL_BLOCKS = (2, 5, 8, 11)  # blocks with attention over the whole map
    cfg.MODEL.VIT.DROP_PATH = 0.1
    cfg.MODEL.VIT.PRETRAIN_IMAGE_SIZE = 224  # pixels; sizes the position embedding
    cfg.MODEL.VIT.RELATIVE_POSITION = False
    cfg.MODEL.VIT.IMAGE_SIZE = 1024  # pixels; sizes the relative positions of whole-map blocks
    cfg.MODEL.VIT.ACTIVATION_CHECKPOINTING = False

    cfg.MODEL.TIMM_VIT = CN()
    cfg.MODEL.TIMM_VIT.NAME = "vit_small_patch16_dinov3"
    cfg.MODEL.TIMM_VIT.LAYERS = (4,)  # (n,): the last n blocks; several numbers: block indices, ascending
    cfg.MODEL.TIMM_VIT.NORMALISE = True  # apply the ViT's final norm to each of them
    cfg.MODEL.TIMM_VIT.FROZEN = True
    cfg.MODEL.TIMM_VIT.WINDOWS = 1  # n > 1: n x n windows beside the whole image at the size of one window
    cfg.MODEL.TIMM_VIT.DROP_PATH = 0.0
    cfg.MODEL.TIMM_VIT.ACTIVATION_CHECKPOINTING = False

    # Learning rate of the backbone over that of the rest; not used with LAYER_DECAY. None: the recipe's own, 0.1 where
    # it is DETR's, else 1.
    cfg.SOLVER.BACKBONE_LR_FACTOR = None
    # 0: off. Else the rate of a backbone block is this to the power of its depth counted from the output.
    cfg.SOLVER.LAYER_DECAY = 0.0
    # Decay the weights of the norms over channels (LayerNorm2d, GroupNorm) as the released recipe does by accident.
    cfg.SOLVER.RELEASED_NORM_DECAY = False


def forget_unread_factor(cfg: CN, content: dict) -> None:
    """Unset the ``SOLVER.BACKBONE_LR_FACTOR`` that a config.yaml saved by version 0.1 states without anybody's wish.

    It wrote the default 0.1 into every run's config.yaml, while only DETR's recipe, whose own it is, read it. Such a
    file holds all keys there were (GLOBAL, which nobody writes), but not PLUGINS, which is newer.

    Args:
        cfg: changed in place.
        content: the file's, as read.
    """
    if cfg.SOLVER.BACKBONE_LR_FACTOR == 0.1 and "GLOBAL" in content and "PLUGINS" not in content:
        cfg.SOLVER.BACKBONE_LR_FACTOR = None
