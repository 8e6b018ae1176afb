"""Exports that several tests look at, made once."""

import pytest

from d2x.deploy.export import ExportOptions, export_model

from .builders import pictures, tiny_centerx, tiny_plain_detr


@pytest.fixture(scope="session")
def centerx_cfg(tmp_path_factory):
    """CenterX with up to 1000 detections an image."""
    return tiny_centerx(tmp_path_factory.mktemp("centerx"), "TEST.DETECTIONS_PER_IMAGE", 1000)


@pytest.fixture(scope="session")
def plain_detr_cfg(tmp_path_factory):
    """Plain-DETR on a small convolutional backbone."""
    return tiny_plain_detr(tmp_path_factory.mktemp("plain_detr"))


@pytest.fixture(scope="session")
def check_images():
    """Two pictures, by name, for the check that belongs to an export."""
    return {f"{i}.png": picture for i, picture in enumerate(pictures(2, seed=7))}


@pytest.fixture(scope="session")
def export(check_images, tmp_path_factory):
    """Function: config, format and options to the folder of a checked export."""

    def run(cfg, format, **options):
        folder = tmp_path_factory.mktemp("exports") / format
        options.setdefault("dynamic", "size" not in options)
        export_model(cfg, folder, ExportOptions(format, **options), check_images=check_images)
        return folder

    return run


@pytest.fixture(scope="session")
def centerx_onnx(centerx_cfg, export):
    """Its dynamic ONNX export."""
    return export(centerx_cfg, "onnx")


@pytest.fixture(scope="session")
def centerx_openvino(centerx_cfg, export):
    """Its dynamic OpenVINO export."""
    return export(centerx_cfg, "openvino")


@pytest.fixture(scope="session")
def centerx_ncnn(centerx_cfg, export):
    """Its dynamic ncnn export, of form "heads"."""
    return export(centerx_cfg, "ncnn")


@pytest.fixture(scope="session")
def plain_detr_onnx(plain_detr_cfg, export):
    """The dynamic ONNX export of Plain-DETR."""
    return export(plain_detr_cfg, "onnx")


@pytest.fixture(scope="session")
def plain_detr_openvino(plain_detr_cfg, export):
    """Its dynamic OpenVINO export."""
    return export(plain_detr_cfg, "openvino")
