"""Without detectron2 the packages say what to do, in a checkout and beside a wheel."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("package", ["centerx", "plain_detr"])
def test_missing_detectron2_is_one_clear_sentence(package):
    code = f"import sys; sys.modules['detectron2'] = None; import {package}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and last.startswith(f"ImportError: {package} needs detectron2, which is not installed here")
    assert "./run.sh setup" in last and "requirements-detectron2.txt" in last
