"""How similar pictures are, by the embeddings of a CLIP vision model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Likeness:
    """How near an adapter's samples are to the data, and how far its other samples have drifted."""

    nearness: float
    """The mean cosine between each sample of the data's captions and each picture of the data (CLIP-I: Ruiz
    et al., 2208.12242, section 4.1)."""
    drift: float | None
    """1 minus the mean cosine between samples of other prompts with and without the adapter, from the same
    noise; None without other prompts."""

    @property
    def numbers(self) -> dict[str, float]:
        """Both by name."""
        return {"nearness": self.nearness, **({} if self.drift is None else {"drift": self.drift})}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.3f}" for name, value in self.numbers.items())

    @property
    def score(self) -> float:
        """Nearness minus drift, which decides between pairs that the loss cannot tell apart."""
        return self.nearness - (self.drift or 0.0)


def nearness(embeddings: Tensor, data: Tensor) -> float:
    """The mean cosine of all pairs of embeddings (N, D) and (M, D)."""
    return float((_directions(embeddings) @ _directions(data).T).mean())


def drift(embeddings: Tensor, before: Tensor) -> float:
    """1 minus the mean cosine of embeddings (N, D) with those of the same prompts without the adapter."""
    return 1 - float((_directions(embeddings) * _directions(before)).sum(1).mean())


def _directions(embeddings: Tensor) -> Tensor:
    return functional.normalize(embeddings.double(), dim=1)
