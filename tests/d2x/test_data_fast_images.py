"""Fast decoding and resizing against detectron2's: the same pixels, and Pillow for whatever is out of the ordinary."""

import io

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from PIL import Image

from d2x.data import fast_resize, images
from d2x.data.fast_resize import FastResizeTransform, Resize, ResizeShortestEdge
from d2x.data.images import decode_plain_jpeg

ORIENTATION = 0x0112


def picture(height=45, width=61, seed=0):
    """(h, w, 3) uint8: smooth colours and some grain, as in a photo."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height))
    return (np.asarray(coarse, dtype=float) + rng.normal(0, 9, (height, width, 3))).clip(0, 255).astype(np.uint8)


def jpeg(image=None, mode="RGB", **options) -> bytes:
    image = Image.fromarray(picture()) if image is None else image
    file = io.BytesIO()
    image.convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def turned(value):
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


PLAIN = {
    "4:4:4": jpeg(subsampling=0),
    "4:2:2": jpeg(subsampling=1),
    "4:2:0": jpeg(subsampling=2, quality=95),
    "progressive": jpeg(progressive=True),
    "coarse": jpeg(quality=20),
    "grey": jpeg(mode="L"),
    "one pixel": jpeg(Image.fromarray(picture(1, 1))),
    "restart markers": jpeg(restart_marker_rows=1),
    "upright by its tag": jpeg(exif=turned(1)),
    "colour profile": jpeg(icc_profile=b"profile"),
    "trailing bytes": jpeg() + b"more",
}
OTHERS = {"cmyk": jpeg(mode="CMYK"), **{f"turned {value}": jpeg(exif=turned(value)) for value in range(2, 9)}}


@pytest.fixture
def written(tmp_path):
    def write(data, name="image.jpg"):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("colour_order", ["RGB", "BGR"])
@pytest.mark.parametrize("kind", PLAIN)
def test_everyday_jpegs_have_the_same_pixels(written, kind, colour_order):
    path = written(PLAIN[kind])
    fast = decode_plain_jpeg(path, colour_order)
    assert fast is not None and fast.dtype == np.uint8
    np.testing.assert_array_equal(fast, read_image(path, colour_order))
    np.testing.assert_array_equal(images.read_image(path, colour_order), fast)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_jpegs_are_left_to_pillow(written, kind):
    path = written(OTHERS[kind])
    assert decode_plain_jpeg(path, "RGB") is None
    np.testing.assert_array_equal(images.read_image(path, "RGB"), read_image(path, "RGB"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "LA", "I;16"])
def test_other_formats_are_left_to_pillow(tmp_path, mode):
    image = Image.fromarray(picture()[..., 0].astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(picture())
    path = str(tmp_path / "image.jpg")  # the name says nothing
    (image if mode == "I;16" else image.convert(mode)).save(path, "PNG")
    assert decode_plain_jpeg(path, "RGB") is None
    np.testing.assert_array_equal(images.read_image(path, "RGB"), read_image(path, "RGB"))


@pytest.mark.parametrize("image_format", [None, "L", "YUV-BT.601"])
def test_other_colour_spaces_are_left_to_pillow(written, image_format):
    path = written(PLAIN["4:2:0"])
    np.testing.assert_array_equal(images.read_image(path, image_format), read_image(path, image_format))


@pytest.mark.parametrize("keep", [3, 20, 200, -400, -2])
def test_cut_off_files_are_judged_by_pillow(written, keep):
    path = written(jpeg(quality=95)[:keep])
    assert decode_plain_jpeg(path, "RGB") is None
    results = []
    for fast in (True, False):
        try:
            results.append(images.read_image(path, "RGB", fast=fast).tolist())
        except ValueError as error:
            results.append(str(error))
    assert results[0] == results[1]


def test_damaged_pixels_are_judged_by_pillow(written):
    data = bytearray(jpeg(quality=95))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path = written(bytes(data))
    assert decode_plain_jpeg(path, "RGB") is None
    np.testing.assert_array_equal(images.read_image(path, "RGB"), read_image(path, "RGB"))


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.jpg"):
        assert decode_plain_jpeg(path, "RGB") is None
        with pytest.raises((ValueError, FileNotFoundError), match="image"):
            images.read_image(path, "RGB")


def test_without_the_library(written, monkeypatch):
    path = written(PLAIN["4:2:0"])
    monkeypatch.setattr(images, "simplejpeg", None)
    assert decode_plain_jpeg(path, "RGB") is None
    np.testing.assert_array_equal(images.read_image(path, "RGB"), read_image(path, "RGB"))


needs_kernel = pytest.mark.skipif(not fast_resize._HAS_KERNEL, reason="no vectorised kernel here: Pillow resizes")


@pytest.mark.parametrize("size", [(80, 107), (30, 40), (45, 61), (90, 20)], ids=str)
@pytest.mark.parametrize("layout", ["plain", "flipped", "upside down", "cropped", "by channel", "read only"])
@needs_kernel
def test_resize_is_pillows_but_for_one_level(size, layout):
    image = {
        "plain": lambda x: x,
        "flipped": lambda x: x[:, ::-1],
        "upside down": lambda x: x[::-1],
        "cropped": lambda x: x[4:40, 7:50],
        "by channel": lambda x: np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0),
        "read only": lambda x: np.broadcast_to(x, x.shape),
    }[layout](picture())
    before = image.copy()
    arguments = (*image.shape[:2], *size, Image.Resampling.BILINEAR)
    ours = FastResizeTransform(*arguments).apply_image(image)
    theirs = T.ResizeTransform(*arguments).apply_image(image)
    assert ours.shape == (*size, 3) and ours.dtype == np.uint8
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.03
    assert ours.transpose(2, 0, 1).flags.c_contiguous
    np.testing.assert_array_equal(image, before)


@needs_kernel
@pytest.mark.parametrize("size, share", [((400, 533), 1e-3), ((240, 320), 0), ((150, 200), 0.02)], ids=str)
def test_a_resized_photo_differs_in_few_values(size, share):
    image = picture(240, 320)
    ours = FastResizeTransform(240, 320, *size).apply_image(image)
    assert (ours != T.ResizeTransform(240, 320, *size).apply_image(image)).mean() <= share


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1)], ids=str)
def test_single_pixels_are_left_to_detectron2(size):
    for image in (picture(), picture(1, 9), np.ascontiguousarray(picture().transpose(2, 0, 1)).transpose(1, 2, 0)):
        arguments = (*image.shape[:2], *size)
        ours, theirs = (kind(*arguments).apply_image(image) for kind in (FastResizeTransform, T.ResizeTransform))
        np.testing.assert_array_equal(ours, theirs)


def test_other_arrays_are_left_to_detectron2():
    transform, plain = (kind(45, 61, 20, 31) for kind in (FastResizeTransform, T.ResizeTransform))
    image = picture()
    for other in (image[..., 0], image[..., :1], image.astype(np.float32)):
        np.testing.assert_array_equal(transform.apply_image(other), plain.apply_image(other))
    mask = image[..., 0]
    np.testing.assert_array_equal(transform.apply_segmentation(mask), plain.apply_segmentation(mask))
    nearest = Image.Resampling.NEAREST
    np.testing.assert_array_equal(transform.apply_image(image, nearest), plain.apply_image(image, nearest))


def test_without_the_kernel(monkeypatch):
    monkeypatch.setattr(fast_resize, "_HAS_KERNEL", False)
    image = picture()
    np.testing.assert_array_equal(
        FastResizeTransform(45, 61, 20, 31).apply_image(image), T.ResizeTransform(45, 61, 20, 31).apply_image(image)
    )


@pytest.mark.parametrize("fast", [True, False])
def test_augmentations_choose_and_move_boxes_as_detectron2(fast):
    image, boxes = picture(), np.array([[3.0, 5.0, 30.0, 41.0]])
    pairs = [
        (ResizeShortestEdge((20, 70), 90, "range", fast=fast), T.ResizeShortestEdge((20, 70), 90, "range")),
        (
            ResizeShortestEdge([30, 60], sample_style="choice", fast=fast),
            T.ResizeShortestEdge([30, 60], 9999, "choice"),
        ),
        (Resize((33, 47), fast=fast), T.Resize((33, 47))),
    ]
    for ours, theirs in pairs:
        for seed in range(3):
            results = []
            for augmentation in (ours, theirs):
                np.random.seed(seed)
                given = T.AugInput(image, boxes=boxes.copy())
                transform = augmentation(given)
                results.append((given.image.shape, given.boxes.tolist()))
            assert results[0] == results[1]
            assert type(ours.get_transform(image)) is (FastResizeTransform if fast else T.ResizeTransform)
            np.testing.assert_allclose(transform.inverse().apply_box(given.boxes), boxes)
    assert "short_edge_length" in repr(pairs[0][0])


def test_no_resize_at_size_zero():
    assert ResizeShortestEdge(0).get_transform(picture()).apply_image(picture()).shape == (45, 61, 3)


def test_result_can_become_a_tensor():
    image = FastResizeTransform(45, 61, 20, 31).apply_image(picture())
    assert torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1))).shape == (3, 20, 31)
