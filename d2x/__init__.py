"""What the detectors share. Importing the package itself needs nothing; most of its modules need detectron2."""

import importlib.util


def missing_detectron2(package: str) -> str:
    """What a package says when it is imported without detectron2, how to get that; "" if it is installed."""
    if importlib.util.find_spec("detectron2") is not None:
        return ""
    return (
        f"{package} needs detectron2, which is not installed here: run `./run.sh setup` in a checkout; beside an"
        " installed wheel, install it as requirements-detectron2.txt and the README (Set-up without run.sh) say"
    )
