"""The GPU kernels in Triton's interpreter, and what happens without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plain_detr.attention.biased import biased_attention
from plain_detr.attention.triton import triton_works

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def errors():
    pytest.importorskip("triton", reason="torch's CPU builds come without Triton")
    command = [sys.executable, "-m", "tests.plain_detr.interpret_kernels"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_value_and_gradients_equal_the_naive_form(errors):
    assert len(errors) == 5
    for case, found in errors.items():
        for name, error in found.items():
            assert error < 2e-5, f"{case}: {name} is off by {error}"


def test_without_a_gpu_they_are_refused_by_name_and_not_taken_by_themselves(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    q, bias = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 2, 2)
    keys = torch.randn(1, 1, 4, 4)
    assert not triton_works(q)
    with pytest.raises(RuntimeError, match="needs Triton and a GPU"):
        biased_attention(q, keys, keys, bias, bias, implementation="triton")
    naive = biased_attention(q, keys, keys, bias, bias, implementation="naive")
    torch.testing.assert_close(biased_attention(q, keys, keys, bias, bias), naive)
