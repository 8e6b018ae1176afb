"""From selected proposals to the queries of the decoder."""

from torch import Tensor, nn

from plain_detr.position_encoding import box_code


class QueryInitializer(nn.Module):
    """Position and content of every query, from the box of its proposal.

    With *mixed selection* (Zhang et al., DINO, section 3.4) only the position follows the box; the content is learned,
    one vector for each rank of the proposals. Without it both come from the box.

    Args:
        hidden_dim: C.
        num_queries: ranks with a learned content: of both groups together.
        mixed_selection: see above.
    """

    def __init__(self, *, hidden_dim: int, num_queries: int, mixed_selection: bool = True):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.from_box = nn.Linear(2 * hidden_dim, 2 * hidden_dim)
        self.from_box_norm = nn.LayerNorm(2 * hidden_dim)
        self.content = nn.Embedding(num_queries, hidden_dim) if mixed_selection else None
        nn.init.xavier_uniform_(self.from_box.weight)

    def forward(self, reference: Tensor) -> tuple[Tensor, Tensor]:
        """(N, Q, 4) boxes in coder space, best first -> content (N, Q, C) and position (N, Q, C)."""
        code = box_code(reference, 2 * self.hidden_dim)
        position, content = self.from_box_norm(self.from_box(code)).chunk(2, dim=-1)
        if self.content is not None:
            content = self.content.weight[: reference.shape[1]].expand(reference.shape[0], -1, -1)
        return content, position
