"""Without detectron2 the package says what to do."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_missing_detectron2_is_one_clear_sentence():
    code = "import sys; sys.modules['detectron2'] = None; import centerx"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and last.endswith("detectron2, which is not installed here: run `./run.sh setup`")
