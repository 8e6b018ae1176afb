"""Config keys of Plain-DETR."""

from detectron2.config import CfgNode as CN


def add_plain_detr_config(cfg: CN) -> None:
    """Declare ``MODEL.PLAIN_DETR.*`` and the keys of its recipe; values are those of the paper's best Swin-S model."""
    if "PLAIN_DETR" in cfg.MODEL:
        return
    cfg.MODEL.PLAIN_DETR = CN()
    node = cfg.MODEL.PLAIN_DETR

    node.NUM_CLASSES = 0  # 0: follow the data set
    node.IN_FEATURE = "p5"  # name of the backbone's output that is used
    node.FEATURE_STRIDE = 16  # pixels per cell of the decoder's map; the backbone's output is rescaled to it
    node.HIDDEN_DIM = 256  # channels of queries and memory; a multiple of NUM_HEADS and of 32 (group norm)
    node.NUM_HEADS = 8
    node.FEEDFORWARD_DIM = 2048
    node.DROPOUT = 0.0
    node.NORM_FIRST = True  # norm before each part of a layer ("pre-norm"), else after the sum
    node.DECODER_LAYERS = 6
    node.DECODER_INIT_STD = 0.02  # of its linear weights at the start; 0: Xavier's, for widths well below 256
    node.POSITION_ENCODING = "sine_unnorm"  # of the memory: "sine" (an image spans 2 pi) or "sine_unnorm" (a cell does)

    # Transformer encoder between backbone and decoder; none in the Swin-S models.
    node.ENCODER = CN()
    node.ENCODER.LAYERS = 0
    node.ENCODER.WINDOW = 0  # side of the attention windows in cells; 0: global attention
    node.ENCODER.NORM_FIRST = False

    # How boxes are written: "sigmoid" (over the image's size) or "delta" (pixels, the paper's re-parameterisation).
    node.BOX_CODER = "delta"
    node.LOOK_FORWARD_TWICE = True  # train each layer's boxes through the layer before, too

    # Box-to-pixel relative position bias of the cross-attention.
    node.BOX_RPB = CN()
    node.BOX_RPB.KIND = "axial"  # "none" (absolute position only), "axial", or "full": 4-D, quadratic, for ablations
    node.BOX_RPB.OFFSETS = "linear"  # or "abs_log8"
    node.BOX_RPB.HIDDEN_DIM = 512  # hidden width of its MLPs
    node.BOX_RPB.CORNERS = True  # offsets to both corners; False: to the centre only
    # Ours: above 0 attention starts inside the box, falling by this much a pixel outside it. 0: as released, anywhere.
    node.BOX_RPB.SLOPE = 0.0

    node.NUM_QUERIES = 300  # of the one-to-one group: detections come from these
    node.ONE_TO_MANY = CN()  # hybrid matching: a second group, in training only
    node.ONE_TO_MANY.QUERIES = 1500  # 0: off
    node.ONE_TO_MANY.REPEATS = 6  # how often each box is offered to the group (k)
    node.ONE_TO_MANY.WEIGHT = 1.0  # factor of its losses (lambda)

    node.PROPOSALS = CN()
    node.PROPOSALS.STRIDES = (8, 16, 32, 64)  # pixels per cell of each level, all made from the decoder's map
    # Side of the anchors of the first level, doubled from level to level: pixels with the delta coder, a fraction of
    # the image with the sigmoid coder. 0: the paper's, 50 and 0.05.
    node.PROPOSALS.ANCHOR_SIZE = 0.0
    # True, as in DINO: proposals are scored and trained by class. False, as released: by objectness alone.
    node.PROPOSALS.CLASS_AWARE = False
    node.PROPOSALS.MIXED_SELECTION = True  # learned content, position from the box; False: both from the box

    node.ATTENTION = "auto"  # "auto", "triton", "cpp", "fused", "chunked" or "naive", see plain_detr/attention
    node.CHECKPOINT_DECODER = False  # recompute decoder layers in the backward pass: less memory, more time

    _add_losses(node)
    _add_exactness(node)

    # DETR's augmentation (recipe.py), before INPUT.MIN_SIZE_TRAIN and RANDOM_FLIP; sizes in pixels.
    cfg.INPUT.PLAIN_DETR = CN()
    cfg.INPUT.PLAIN_DETR.CROP_PROBABILITY = 0.5  # of resizing and cropping first
    cfg.INPUT.PLAIN_DETR.CROP_RESIZE = (400, 500, 600)  # shorter side before the crop, one at random
    cfg.INPUT.PLAIN_DETR.CROP_SIZE = (384, 600)  # each side of the crop is drawn from this range


def _add_losses(node: CN) -> None:
    node.LOSS = CN()  # applied to every layer, to the proposals, and to both groups
    node.LOSS.CLASS_WEIGHT = 2.0
    node.LOSS.BOX_WEIGHT = 1.0  # L1: 1 on deltas, 5 on normalised boxes
    node.LOSS.GIOU_WEIGHT = 2.0
    node.LOSS.FOCAL_ALPHA = 0.25
    node.LOSS.FOCAL_GAMMA = 2.0

    node.MATCHER = CN()  # costs of a pair
    node.MATCHER.CLASS_COST = 2.0
    node.MATCHER.BOX_COST = 1.0  # as LOSS.BOX_WEIGHT
    node.MATCHER.GIOU_COST = 2.0
    node.MATCHER.FOCAL_ALPHA = 0.25  # of the class cost, whatever the loss has
    node.MATCHER.FOCAL_GAMMA = 2.0


def _add_exactness(node: CN) -> None:
    """Where the released code makes a result depend on the batch or the padding; each default is right."""
    # Each distinct image size has its own pass through backbone, up-sampling and projection, so that a result does
    # not depend on what else is in the batch. False: one pass over the padded batch, as released.
    node.BATCH_INDEPENDENT = True
    # With BATCH_INDEPENDENT: every image is padded to a multiple of this many pixels, and images of equal padded size
    # share a pass. More than 1 is faster where sizes vary; keep the value that a model was trained with.
    node.PAD_MULTIPLE = 1
    # Which cells count as image, see plain_detr/padding.py. "image": exact. "nearest": as released; with
    # BATCH_INDEPENDENT it gives, in any batch, what the released code gives with one image at a time.
    node.VALID_AREA = "image"
    # True, as released: anchors on padding or at the border stay in the selection and in the proposals' loss.
    node.KEEP_INVALID_PROPOSALS = False
    node.PADDING_LOGIT = float("-inf")  # added to attention logits of padded cells; released: -100
    # True: repeat a fault of the released matcher, see HungarianMatcher.released_pairing.
    node.RELEASED_PAIRING = False
