"""The C++ kernels of ``plain_detr/attention/csrc``: compiled when first asked for, kept in the user's cache.

They need a C++ compiler and nothing else, neither Python's nor torch's headers: compiling takes seconds, and the result
fits any version of either. Without a compiler (or with ``PLAIN_DETR_CPP=0``) everything runs on torch's own operations.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

LANES = 8  # of csrc/vectors.h
_SOURCES = Path(__file__).with_name("csrc")
_FLAGS = ["-std=c++17", "-O3", "-shared", "-fPIC", "-pthread", "-Wno-psabi"]
# By what torch says of the processor: a shared cache may serve machines of several kinds.
_INSTRUCTIONS = {"AVX2": ["-mavx2", "-mfma"], "AVX512": ["-mavx512f", "-mavx512vl", "-mfma"]}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where they cannot be had; the log says why, once."""
    if os.environ.get("PLAIN_DETR_CPP") == "0":
        return None
    try:
        return _load()
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        logging.getLogger(__name__).warning("no C++ kernels, attention on the CPU is slower: %s", reason)
        return None


def call(name: str, *arguments: Tensor | int | None) -> None:
    """Call a kernel with contiguous float32 or int32 CPU tensors (None: a null pointer) and whole numbers.

    Raises:
        ValueError: another tensor. The kernels could only crash on it.
    """
    values = []
    for part in arguments:
        if isinstance(part, Tensor):
            if not part.is_contiguous() or part.device.type != "cpu" or part.dtype not in (torch.float32, torch.int32):
                raise ValueError(f"{name} takes contiguous float32 on the CPU, got {part.dtype} on {part.device}")
            values.append(ctypes.c_void_p(part.data_ptr()))
        else:
            values.append(part if part is None else ctypes.c_int(part))
    getattr(library(), name)(*values)


def _load() -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise OSError("no C++ compiler found (set CXX to name one, or PLAIN_DETR_CPP=0 to do without)")
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    flags = [*_FLAGS, *(_INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), []) if x86 else [])]
    sources = sorted(_SOURCES.glob("*.cpp"))
    # The path of the compiler is part of the name, so that trying another one does what it says.
    key = [compiler.encode(), platform.machine().encode(), " ".join(flags).encode()]
    key += [path.read_bytes() for path in sorted(_SOURCES.iterdir())]
    name = f"kernels-{hashlib.sha256(b'|'.join(key)).hexdigest()[:16]}.so"
    path = _cache_folder() / name
    if not path.is_file():
        _compile([compiler, *flags, *map(str, sources)], path)
    return ctypes.CDLL(str(path))


def _compile(command: list[str], path: Path) -> None:
    """Compile beside ``path`` and move it there as a whole: processes that do so at once do not see halves."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        subprocess.run([*command, "-o", str(made)], check=True, capture_output=True, text=True, timeout=300)
        os.replace(made, path)


def _cache_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plain_detr"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK):
            return cache
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="plain_detr_"))  # for this process only; never a name that others could prepare
