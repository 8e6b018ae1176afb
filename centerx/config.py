"""Config keys of CenterX."""

from detectron2.config import CfgNode as CN


def add_centerx_config(cfg: CN) -> None:
    """Declare ``MODEL.CENTERNET.*`` and ``INPUT.CENTERX.*``; values are the defaults, those of the released code.

    The backbone is ``MODEL.BACKBONE.NAME``, any in detectron2's registry; detections per image are
    ``TEST.DETECTIONS_PER_IMAGE``.
    """
    if "CENTERNET" in cfg.MODEL:
        return
    cfg.MODEL.CENTERNET = CN()
    node = cfg.MODEL.CENTERNET

    node.NUM_CLASSES = 0  # 0: follow the data set
    node.IN_FEATURES = []  # names of the backbone's outputs that the neck may use; empty: all
    node.OUTPUT_STRIDE = 4  # input pixels per cell of heatmap, size and offset maps; a power of two
    node.HEAD_CHANNELS = 64  # between the two convolutions of each branch of the head
    node.CLASS_SPECIFIC_SIZE = False  # one (width, height) per class instead of one for all
    node.OFFSET = True  # predict where in its cell a centre lies; False: in the middle

    # From the backbone's coarsest feature to OUTPUT_STRIDE, a factor of 2 a stage.
    node.NECK = CN()
    # "upsample", or "dlaup": aggregates all features of the backbone; meant for CONV "separable" and UP "depthwise".
    node.NECK.NAME = "upsample"
    node.NECK.CHANNELS = [256, 128, 64]  # outputs of the stages, coarsest first; a list too long is used from its end
    node.NECK.CONV = "modulated_deform"  # or "deform", "plain", "separable" (depth-wise, then 1x1)
    node.NECK.UP = "transposed"  # or "depthwise" (transposed, one kernel a channel), "bilinear" (fixed)
    node.NECK.UP_KERNEL = 4  # cells; 2, 3 or 4
    node.NECK.UP_INIT = "bilinear"  # or "random", "bilinear_to_first_channel" (the released start)
    node.NECK.NORM = "BN"  # any detectron2 norm: "BN", "SyncBN", "FrozenBN", "GN", "" for none
    node.NECK.SKIP = False  # of "upsample": add the backbone's feature of each stage's stride (1x1 conv)

    node.TARGET = CN()
    node.TARGET.MIN_OVERLAP = 0.7  # IoU with the object of a box whose corners are off by the bump's radius
    node.TARGET.MAX_BOXES = 0  # objects beyond it, in the order of the data, become background; 0: keep all

    node.LOSS = CN()
    node.LOSS.HEATMAP = "focal"  # or "quality_focal", "mse"
    node.LOSS.SIZE = "l1"  # of width and height in cells; or "giou" of the whole box, for which SIZE_WEIGHT 2 is apt
    node.LOSS.SIZE_NORM = "none"  # of the "l1": divide by the "object"'s mean side; "image_sum": the released NORM_WH
    # Which classes of an image give no heatmap loss. "labelled_classes": those that its data set is not labelled for,
    # by the data set's metadata; "empty_heatmap": those without an object, the released guess; "none".
    node.LOSS.UNLABELLED = "labelled_classes"
    node.LOSS.HEATMAP_WEIGHT = 1.0
    node.LOSS.SIZE_WEIGHT = 0.1
    node.LOSS.OFFSET_WEIGHT = 1.0
    node.LOSS.MIN_PROBABILITY = 0.0  # of "focal": smaller predictions count as this; released 1e-12

    node.INFERENCE = CN()
    node.INFERENCE.MIN_SCORE = 0.0  # a detection must score more; a negative number also keeps filler of score 0
    # One pass per distinct image size, so that a result does not depend on what else is in the batch. False: one pass
    # over the batch padded to its largest image, as released.
    node.INFERENCE.BATCH_INDEPENDENT = True
    node.INFERENCE.CENTRES_IN_PADDING = False  # True, as released: detections centred outside the image stay
    node.INFERENCE.CLIP_BOXES = True  # to the image, dropping empty ones; False, as released: boxes as decoded

    # Augmentation in training, in this order: INPUT.RANDOM_FLIP, zoom out, INPUT.CROP, resize, colour.
    cfg.INPUT.CENTERX = CN()
    # "shortest_edge": by INPUT.MIN_SIZE_* and MAX_SIZE_*; "fixed": to SIZE, aspect ratio not kept; "fit": the
    # largest size that fits into SIZE; "center_affine": random zoom and shift into SIZE, in evaluation "fit"; "none".
    cfg.INPUT.CENTERX.RESIZE = "shortest_edge"
    cfg.INPUT.CENTERX.SIZE = (512, 512)  # (height, width) in pixels, of "fixed", "fit" and "center_affine"
    cfg.INPUT.CENTERX.FIT_ROUNDING = "nearest"  # of the sides with "fit"; "down", as the released inference
    cfg.INPUT.CENTERX.FIT_RESAMPLING = "bilinear"  # or "opencv_bilinear" (released inference), "opencv_area" (export)
    cfg.INPUT.CENTERX.AFFINE_SCALE = (0.6, 1.4)  # window over the smallest that holds the image; above 1: zoom out
    cfg.INPUT.CENTERX.AFFINE_BORDER = 128  # pixels of the image that the window's centre keeps from its edges
    cfg.INPUT.CENTERX.CROP_AROUND_OBJECT = False  # INPUT.CROP keeps the centre of at least one object inside
    cfg.INPUT.CENTERX.ZOOM_OUT = 0.0  # probability of putting the image on a larger canvas of PIXEL_MEAN's colour
    cfg.INPUT.CENTERX.ZOOM_OUT_LARGEST = 4.0  # largest side of that canvas over the image's
    cfg.INPUT.CENTERX.BRIGHTNESS = (1.0, 1.0)  # range of the factor; (1, 1): off
    cfg.INPUT.CENTERX.CONTRAST = (1.0, 1.0)
    cfg.INPUT.CENTERX.SATURATION = (1.0, 1.0)
    cfg.INPUT.CENTERX.LIGHTING = 0.0  # standard deviation along the principal colours of ImageNet, 0-255; 0: off
    cfg.INPUT.CENTERX.STRONG_COLOUR = 0.0  # probability of up to three of blur, noise, JPEG, equalise, grey, ...
