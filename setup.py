from pathlib import Path

from setuptools import find_packages, setup

EXPORT = [
    "onnx>=1.18",
    "onnxscript>=0.5",
    "onnxruntime>=1.22",
    "openvino>=2025.2",
    "nncf>=2.17",
    "ncnn>=1.0.20250503",
    "pnnx>=20250503",
    "protobuf>=4.25",
]

# Compiled helpers that everything also runs without: COCO statistics, their result file, decoding of JPEGs.
FAST = ["hotcoco>=1.3", "orjson>=3.10", "simplejpeg>=1.8"]

setup(
    name="plain-detectors",
    version="0.1.0",
    description="Plain-DETR and CenterX: two detectors as detectron2 extension projects",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["centerx*", "plain_detr*", "d2x*"]),
    package_data={"plain_detr": ["attention/csrc/*"]},
    python_requires=">=3.10",
    # detectron2 is not listed: no package index has it under its own name. `./run.sh setup` installs it (see README).
    install_requires=[
        "torch>=2.8",
        "torchvision>=0.23",
        "numpy>=1.26",
        "Pillow>=10",
        "timm>=1.0.20",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.10",
        "omegaconf>=2.3",
        "hydra-core>=1.3",
        "cloudpickle>=3",
        "termcolor>=2",
        "tabulate>=0.9",
        "yacs>=0.1.8",
        "packaging>=23",
        "pycocotools>=2.0.8",
        "scipy>=1.11",
        "safetensors>=0.4.5",
        "matplotlib>=3.8",
        "tensorboard>=2.16",
        "tqdm>=4.66",
        "albumentations>=2.0.5,<2.1",
        "opencv-python-headless>=4.10,<5",  # 5 has no Caffe importer, in which exported models are run
    ],
    extras_require={
        "export": EXPORT,
        "tensorrt": [*EXPORT, "tensorrt-rtx-cu13>=1.5"],
        "fast": FAST,
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "psutil>=5.9",
            *EXPORT,
            *FAST,
        ],
    },
)
