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

# Caffe models are run by OpenCV's importer, which version 5 no longer has.
CAFFE = ["onnx>=1.18", "onnxscript>=0.5", "protobuf>=4.25", "opencv-python-headless>=4.10,<5"]

# Compiled helpers that everything also runs without: COCO statistics, their result file, decoding of JPEGs.
FAST = ["hotcoco>=1.3", "orjson>=3.10", "simplejpeg>=1.8"]

# Folders of the checkout that an installed copy has inside d2x: `python -m d2x.tools.quickstart` runs without a
# checkout. They keep their places relative to each other, so the configs' _BASE_ is the same path in both.
FOLDERS = {"d2x.tools": "tools", "d2x.projects": "projects", "d2x.configs": "configs"}

setup(
    name="plain-detectors",
    version="0.2.0.dev0",
    description="Plain-DETR and CenterX: two detectors as detectron2 extension projects",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The Plain Detectors authors",
    license_expression="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    project_urls={
        "Plain-DETR (paper)": "https://arxiv.org/abs/2308.01904",
        "CenterNet (paper)": "https://arxiv.org/abs/1904.07850",
        "detectron2": "https://github.com/facebookresearch/detectron2",
    },
    keywords=["object detection", "detectron2", "detr", "centernet", "knowledge distillation", "model export"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=[*find_packages(include=["centerx*", "plain_detr*", "d2x*"]), *FOLDERS],
    package_dir=FOLDERS,
    package_data={
        "": ["py.typed"],
        "plain_detr": ["attention/csrc/*"],
        "d2x.projects": ["*/configs/*.yaml", "*/configs/*/*.yaml"],
        "d2x.configs": ["*.yaml"],
    },
    python_requires=">=3.10",
    entry_points={"d2x.detectors": ["centerx = centerx", "plain_detr = plain_detr"]},
    # detectron2 is not listed: no package index has it under its own name. See docs/install.md.
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
        "opencv-python-headless>=4.10",
    ],
    extras_require={
        "export": EXPORT,
        "caffe": CAFFE,
        "tensorrt": [*EXPORT, "tensorrt-rtx-cu13>=1.5"],
        "fast": FAST,
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "pyright>=1.1.400",
            "psutil>=5.9",
            "setuptools>=77",  # builds the wheel in the tests
            *EXPORT,
            *CAFFE,
            *FAST,
        ],
    },
)
