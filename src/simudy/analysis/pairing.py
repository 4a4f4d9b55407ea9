"""Which reconstruction belongs to which true image. Nothing here sees labels: only the (n, m)
matrix of similarities.

Both return an (n,) integer tensor: the column paired with each row, one-to-one. When there are
fewer reconstructions than true images (m < n), the rows left over get `UNMATCHED`; a scorer counts
them as 0.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

UNMATCHED = -1


def greedy(matrix: Tensor) -> Tensor:
    """Take the highest remaining similarity, strike out its row and column, repeat: the paper's
    pairing.

    Not optimal in total, but it is what the published averages were computed with.
    """
    remaining = matrix.clone()
    match = torch.full((len(matrix),), UNMATCHED)
    for _ in range(min(matrix.shape)):
        row, column = divmod(int(remaining.argmax()), matrix.shape[1])
        match[row] = column
        remaining[row], remaining[:, column] = -torch.inf, -torch.inf
    return match


def hungarian(matrix: Tensor) -> Tensor:
    """The assignment whose summed similarity is highest (Kuhn, 1955; scipy's Jonker-Volgenant
    solver).
    """
    rows, columns = linear_sum_assignment(matrix.cpu().numpy(), maximize=True)
    match = torch.full((len(matrix),), UNMATCHED)
    match[torch.as_tensor(rows)] = torch.as_tensor(columns)
    return match


def matched(values: Tensor, match: Tensor, *, otherwise: float) -> Tensor:
    """values[i, match[i]] for every row of an (n, m) matrix, and `otherwise` for rows without a
    partner: -> (n,).
    """
    match = match.to(values.device)
    chosen = values.gather(1, match.clamp(min=0)[:, None])[:, 0]
    return torch.where(match == UNMATCHED, torch.full_like(chosen, otherwise), chosen)
