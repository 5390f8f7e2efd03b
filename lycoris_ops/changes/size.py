"""How large a change is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..maths.tensors import CPU, norm
from .forms import Additive, Kronecker, LowRank, add_up, product


def norm_of(forms: Sequence[Additive]) -> float:
    """The Frobenius norm of the sum of at least one form, at strength 1.

    For products U D its square is tr((U^T U)(D D^T)). For a single Kronecker product the norm is the product
    of the factors' norms. Neither needs the matrix (O, K); any other sum is formed as that matrix in float32.
    """
    form = forms[0]
    if len(forms) == 1 and isinstance(form, Kronecker) and form.rows is form.columns is None:
        first, second = (product(factor, torch.float64, CPU) for factor in (form.w1, form.w2))
        return abs(form.scale) * float(norm(first)) * float(norm(second))
    low = [form for form in forms if isinstance(form, LowRank)]
    if len(low) < len(forms):
        return float(norm(add_up(forms, torch.float32, CPU).double()))
    up = torch.cat([form.scale * form.up.detach().double() for form in low], dim=1)
    down = torch.cat([form.down.detach().double() for form in low])
    return float(((up.T @ up) * (down @ down.T)).sum().clamp_min(0).sqrt())
