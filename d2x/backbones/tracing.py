"""Whether a graph is being recorded, which must hold no choice made for the sizes or the values at hand."""

import torch
from torch.jit._trace import is_tracing


def exporting() -> bool:
    """Whether ``torch.jit.trace`` or ``torch.export`` records."""
    return is_tracing() or torch.compiler.is_exporting()


def recording() -> bool:
    """Whether any of them or ``torch.compile`` records."""
    return is_tracing() or torch.compiler.is_compiling()
