"""From a query to class logits and a raw box."""

import math

from torch import Tensor, nn

# Probability every class starts with (focal loss paper, section 3.3).
PRIOR = 0.01


class PredictionHead(nn.Module):
    """A linear classifier and a three-layer box MLP. There is no background class.

    At the start every class scores 1 % and every raw box is zero, so that boxes equal their reference.
    """

    def __init__(self, *, hidden_dim: int, num_classes: int):
        super().__init__()
        self.class_logits = nn.Linear(hidden_dim, num_classes)
        self.raw_box = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(inplace=True),
            last := nn.Linear(hidden_dim, 4),
        )
        nn.init.constant_(self.class_logits.bias, -math.log((1 - PRIOR) / PRIOR))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(N, Q, C) -> logits (N, Q, K) and raw boxes (N, Q, 4), both float32."""
        return self.class_logits(queries).float(), self.raw_box(queries).float()
