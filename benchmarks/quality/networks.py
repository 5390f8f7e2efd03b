"""Parts of the networks that several tasks train."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Self-attention and a feed-forward part over rows (B, N, width), each added to its input.

    If `condition` is not 0, so many numbers that describe time and class scale, shift and gate both (adaLN).
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False, condition: int = 0) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1 = nn.LayerNorm(width, elementwise_affine=not condition)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=not condition)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = nn.Linear(condition, 6 * width) if condition else None
        if self.modulation is not None:
            # Gates of 0: at first a block returns its input.
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, rows: Tensor, condition: Tensor | None = None) -> Tensor:
        if self.modulation is None:
            rows = rows + self._attention(self.norm1(rows))
            return rows + self._feed_forward(self.norm2(rows))
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        rows = rows + gate1 * self._attention(self.norm1(rows) * (1 + scale1) + shift1)
        return rows + gate2 * self._feed_forward(self.norm2(rows) * (1 + scale2) + shift2)

    def _attention(self, rows: Tensor) -> Tensor:
        q, k, v = (
            part(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q, self.to_k, self.to_v)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.to_out(y.transpose(1, 2).flatten(2))

    def _feed_forward(self, rows: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(rows)))


def patches(pictures: Tensor, side: int) -> Tensor:
    """Pictures (B, H, W) as rows (B, N, side * side) of their squares."""
    return pictures.unfold(1, side, side).unfold(2, side, side).flatten(3).flatten(1, 2)


def positions(count: int, width: int) -> nn.Parameter:
    """A learned vector for each of `count` places, before training."""
    return nn.Parameter(0.02 * torch.randn(count, width))
