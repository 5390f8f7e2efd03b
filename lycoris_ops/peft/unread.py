"""The kinds of PEFT's adapters that are not read, so that messages can name them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Unread:
    """A kind of PEFT adapter that is not read."""

    name: str
    """Its authors' name for it."""
    tensors: tuple[str, ...]
    """Names of its tensors, each a segment of a key."""


UNREAD: dict[str, Unread] = {
    "ADAMSS": Unread("AdaMSS", ("adamss_A", "adamss_B")),
    "ADAPTION_PROMPT": Unread("an adaption prompt", ("adaption_prompt", "adaption_gate")),
    "BEFT": Unread("BEFT", ("beft_bias",)),
    "BONE": Unread("Bone", ("bone_block",)),
    "C3A": Unread("C3A", ("c3a_kernel",)),
    "CARTRIDGE": Unread("Cartridge", ()),
    "CPT": Unread("context-aware prompt tuning", ()),
    "DEFT": Unread("DEFT", ("deft_P", "deft_R")),
    "DELORA": Unread("DeLoRA", ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")),
    "FOURIERFT": Unread("FourierFT", ("fourierft_spectrum",)),
    "FROD": Unread("FRoD", ("frod_lambda_l", "frod_lambda_s_values")),
    "GLORA": Unread("PEFT's own GLoRA", ("glora_A", "glora_B", "glora_C", "glora_D", "glora_E")),
    "GRALORA": Unread("GraLoRA", ("gralora_A", "gralora_B", "gralora_A_general", "gralora_B_general")),
    "HIRA": Unread("HiRA", ("hira_A", "hira_B", "hira_embedding_A", "hira_embedding_B")),
    "HRA": Unread("HRA", ("hra_u",)),
    "KASA": Unread("KaSA", ("lora_diag",)),
    "LILY": Unread("Lily", ("lily_A", "lily_B", "lily_router")),
    "MISS": Unread("MiSS", ("miss_block",)),
    "MULTITASK_PROMPT_TUNING": Unread("multitask prompt tuning", ("prompt_task_cols", "prompt_task_rows")),
    "OSF": Unread("OSF", ("osf_svd_params",)),
    "P_TUNING": Unread("P-tuning", ()),
    "PEANUT": Unread("PEANuT", ("peanut_A", "peanut_B", "peanut_encoders", "peanut_decoders")),
    "POLY": Unread("Poly", ("poly_lora_A", "poly_lora_B", "poly_router")),
    "PREFIX_TUNING": Unread("prefix tuning", ()),
    "PROMPT_TUNING": Unread("prompt tuning", ("prompt_embeddings",)),
    "PSOFT": Unread("PSOFT", ("psoft_R",)),
    "PVERA": Unread("PVeRA", ("pvera_lambda_b", "pvera_lambda_d", "pvera_A", "pvera_B")),
    "RANDLORA": Unread("RandLoRA", ("randlora_lambda", "randlora_gamma", "randlora_A", "randlora_B")),
    "ROAD": Unread("RoAd", ("road_theta", "road_alpha")),
    "SHADOW": Unread("Shadow", ()),
    "SHIRA": Unread("SHiRA", ("shira_weight", "shira_indices")),
    "SUPERTUNING": Unread("Super-Tuning", ("supertuning_values", "supertuning_lora_A", "supertuning_lora_B")),
    "TINYLORA": Unread("TinyLoRA", ("tinylora_v",)),
    "UNILORA": Unread("UniLoRA", ("unilora_theta_d",)),
    "VBLORA": Unread("VB-LoRA", ("vblora_logits_A", "vblora_logits_B", "vblora_vector_bank")),
    "WAVEFT": Unread("WaveFT", ("waveft_spectrum",)),
    "XLORA": Unread("X-LoRA", ("internal_xlora_classifier",)),
}
"""The kinds by their `peft_type`; KaSA, a setting of LoRA's, by its name. Kinds without tensors here are
recognised only by their configuration.

Source: `peft_types.py` and the layers of peft 0.21.
"""
_BY_TENSOR = {tensor: kind for kind in UNREAD.values() for tensor in kind.tensors}


def not_read(kind: Unread) -> str:
    """The kind in words, for a message: `VB-LoRA, a kind of PEFT's that is not read`."""
    return f"{kind.name}, a kind of PEFT's that is not read"


def told_by(keys: Iterable[str]) -> Unread | None:
    """The kind that most of these keys, or suffixes of keys, belong to; None where no key names one."""
    kinds = Counter(_BY_TENSOR[word] for key in keys for word in key.split(".") if word in _BY_TENSOR)
    return kinds.most_common(1)[0][0] if kinds else None
