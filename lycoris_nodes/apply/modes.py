"""Which of a model's layers are merged and which are bypassed, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...lycoris_ops import (
    BypassPlan,
    Entry,
    Geometry,
    LycorisError,
    Match,
    Phrase,
    Slot,
    Stack,
    Tokens,
    Where,
    bypass_refusal,
    few,
    geometry_of,
    located,
    paragraph,
    phrase,
)
from ..host.patching import enlarged_by_patches, merge_loss, merges_in_every_pass
from ..host.weights import layer_of, merge_obstacle
from .bypass import plans_of
from .places import tokens_by_path
from .uncalled import used_uncalled

SCHEDULED = Phrase("R-strength-scheduled")
PLACED = Phrase("R-strength-placed")
UNKNOWN = Phrase("R-places-unknown")
AT_NO_PLACE = Phrase("R-at-no-place")

WAYS = {
    "merged": "R-way-merged",
    "bypassed": "R-way-bypassed",
    "left out": "R-way-left-out",
    "unmasked": "R-way-unmasked",
}
"""How layers were applied, or why they were not, by the codes of the words."""
Mode = Literal["auto", "merge", "bypass"]
Pairs = Mapping[str, Sequence[tuple[Entry, Match]]]
"""The adapter layers that change a weight or bias, by its key."""


@dataclass(frozen=True)
class Choice:
    """Which of the layers that a stack changes are merged and which are bypassed."""

    merged: dict[str, Sequence[tuple[Entry, Match]]] = field(default_factory=dict)
    """The adapter layers to merge into a weight or bias, by its key."""
    bypassed: dict[str, BypassPlan] = field(default_factory=dict)
    """The plans of modules by path, which is the key of a weight or bias without its last part."""
    tokens: dict[str, Tokens] = field(default_factory=dict)
    """The kinds of tokens, by path, of bypassed modules whose strength differs over places."""
    unmasked: list[str] = field(default_factory=list[str])
    """Module paths of layers that act at all places although they have a mask."""
    masked: list[tuple[Entry, Match]] = field(default_factory=list[tuple[Entry, Match]])
    """Adapter layers that act at no place, which their masks leave out."""
    why: dict[tuple[str, str | Phrase], list[str]] = field(default_factory=dict)
    """Module paths by ("merged", "bypassed", "left out" or "unmasked", the reason). The reason is "" if the
    user chose the mode."""


def choose(
    patcher: Any, shapes: Mapping[str, Sequence[int]], pairs: Pairs, mode: Mode, *, strict: bool = False
) -> Choice:
    """Choose to merge or to bypass, layer by layer. A layer's weight and bias always go the same way.

    A layer whose strength follows a schedule, or differs over places, is bypassed in any mode. If it can only
    be merged, it takes the mean of its strength over the sampling, or its whole strength at all places; with
    `strict` that is an error. A layer without places is left out if the mask says so.

    `shapes` has the weights of the patcher's model. `pairs` of other keys are left out, because they belong
    to another model. Raises LycorisError for a layer that can be neither merged nor bypassed.
    """
    choice = Choice()
    layers: dict[str, dict[str, Sequence[tuple[Entry, Match]]]] = {}
    for key in pairs:
        if key in shapes:
            path, _, name = key.rpartition(".")
            # A parameter with another name belongs to no layer and is taken by itself.
            layers.setdefault(path if name in ("weight", "bias") else key, {})[key] = pairs[key]
    short = mode == "auto" and bool(layers) and merges_in_every_pass(patcher)
    before = plans_of(patcher) if layers else {}
    tokens = tokens_by_path(shapes) if any(map(_is_placed, layers.values())) else {}
    for path, met in layers.items():
        kind = tokens.get(path, "text")
        masked = _is_masked(met)
        if not tokens and masked:
            choice.why.setdefault(("unmasked", UNKNOWN), []).append(path)
            choice.unmasked.append(path)
        if kind == "text":
            met, left = _at_no_place(met, whole=not tokens)
            choice.masked.extend(left)
            if not any(met.values()):
                choice.why.setdefault(("left out", AT_NO_PLACE), []).append(path)
                continue
        timed = any(match.timings for matches in met.values() for _, match in matches)
        placed = _is_placed(met)
        live = timed or placed
        wanted = (True, PLACED if placed else SCHEDULED) if live else _wanted(patcher, met, mode, short)
        plan, reason = _plan(patcher, path, shapes, met, wanted, before.get(path))
        if plan is None and live:
            reason = _mean_taken(path, reason, placed=placed, strict=strict)
        if plan is None:
            constant = {key: [(entry, match.constant()) for entry, match in met[key]] for key in met}
            choice.merged.update(constant if live else met)
            if placed and masked and tokens:
                choice.unmasked.append(path)
        else:
            choice.bypassed[path] = plan
            if plan.placed:
                choice.tokens[path] = kind
        choice.why.setdefault(("merged" if plan is None else "bypassed", reason), []).append(path)
    _add_partners(patcher, tokens, choice)
    return choice


def _add_partners(patcher: Any, tokens: Mapping[str, Tokens], choice: Choice) -> None:
    """If some keys or values of a cross-attention are bypassed, bypass all of them.

    The host's models use them together, so all must be for the same places.
    """
    own = {path.rpartition(".")[0] for path, kind in choice.tokens.items() if kind == "for places"}
    for path, kind in tokens.items():
        if kind != "for places" or path in choice.tokens or path.rpartition(".")[0] not in own:
            continue
        geometry = geometry_of(layer_of(patcher, path))
        if isinstance(geometry, Geometry):
            choice.bypassed.setdefault(path, BypassPlan.build(geometry, ()))
            choice.tokens[path] = kind


def _is_placed(met: Pairs) -> bool:
    return any(match.where is not None for matches in met.values() for _, match in matches)


def _is_masked(met: Pairs) -> bool:
    wheres = (match.where for matches in met.values() for _, match in matches)
    return any(where is not None and where.mask is not None for where in wheres)


def _at_no_place(
    met: Pairs, *, whole: bool
) -> tuple[dict[str, Sequence[tuple[Entry, Match]]], list[tuple[Entry, Match]]]:
    """The adapter layers that change a layer without places, by key, and those that their masks leave out.

    If `whole`, masks leave out none.
    """
    kept: dict[str, list[tuple[Entry, Match]]] = {key: [] for key in met}
    left: list[tuple[Entry, Match]] = []
    for key, pairs in met.items():
        for entry, match in pairs:
            where = match.where
            if where is not None and where.mask is not None and not (whole or where.mask.at_no_place):
                left.append((entry, match))
                continue
            factors = None if where is None else where.factors
            everywhere = None if factors is None else Where(factors=factors)
            kept[key].append((entry, match._replace(where=everywhere)))
    return dict(kept), left


def without_mask(choices: Sequence[Choice]) -> str:
    """A sentence on the layers that act at all places although they have a mask; "" for none."""
    count = sum(len(choice.unmasked) for choice in choices)
    return phrase("R-mask-has-no-effect-on", count=count) if count else ""


def describe_choice(mode: Mode, choices: Sequence[Choice], stack: Stack) -> str:
    """The part of the report on modes, in words; "" if the mode is merge and every layer is merged whole.

    `stack` is the given stack, with both adapters of its pairs.
    """
    why: dict[tuple[str, str | Phrase], list[str]] = {}
    for choice in choices:
        for way, paths in choice.why.items():
            why.setdefault(way, []).extend(paths)
    total = {way: sum(len(paths) for (mode_of, _), paths in why.items() if mode_of == way) for way, _ in why}
    bypassed = total.get("bypassed", 0)
    if mode == "merge" and not bypassed and not total.keys() & {"left out", "unmasked"}:
        return ""
    lines = [phrase("R-mode-bypassed-merged", mode=mode, bypassed=bypassed, merged=total.get("merged", 0))]
    for (way, reason), paths in sorted(why.items(), key=lambda item: -len(item[1])):
        if reason:
            words = phrase(WAYS[way], layers=len(paths), reason=reason, paths=few(paths))
            lines.append(f"  {words}")
    if bypassed:
        # Save Merged Model refuses stacks with schedules, masks or pairs.
        constant = not any(entry.schedule or entry.where or entry.low_noise for entry in stack)
        lines.append(
            f"  {phrase('R-comfyui-s-own-nodes-save', bypassed=bypassed)}"
            + (f" {phrase('R-save-merged-model-writes-whole')}" if constant else "")
        )
    return paragraph(lines)


def _mean_taken(path: str, reason: str | Phrase, *, placed: bool, strict: bool) -> str:
    """Why a layer takes the mean of its schedule, or is the same at all places.

    Raises LycorisError if `strict`.
    """
    instead = phrase("R-same-at-all-places") if placed else phrase("R-mean-schedule")
    if strict:
        raise LycorisError(
            "E-mask-not-followed-strict" if placed else "E-schedule-not-followed-strict",
            key=path,
            reason=reason,
        )
    return phrase("R-strength-2", reason=reason, instead=instead)


def _wanted(patcher: Any, keys: Iterable[str], mode: Mode, short: bool) -> tuple[bool, str | Phrase]:
    """Whether a layer should be bypassed, and the reason; the reason is "" if the user chose the mode."""
    if mode != "auto":
        return mode == "bypass", ""
    if short:
        return True, phrase("R-comfyui-short-memory-would-merge")
    for key in keys:
        reason = merge_loss(patcher, key) or merge_obstacle(patcher, key)
        if reason is not None:
            return True, reason
    return False, phrase("R-kept-plain-floats-so-merged")


def _plan(
    patcher: Any,
    path: str,
    shapes: Mapping[str, Sequence[int]],
    pairs: Pairs,
    wanted: tuple[bool, str | Phrase],
    before: BypassPlan | None,
) -> tuple[BypassPlan | None, str | Phrase]:
    """The plan to bypass a layer, or None to merge it; and the reason.

    `wanted` is whether to bypass it, with the reason. `before` is the plan that earlier nodes gave it. Raises
    LycorisError for a layer that can be neither merged nor bypassed.
    """
    bypassed, reason = wanted
    if not bypassed and before is None:
        return None, reason
    plan = _build(patcher, path, shapes, pairs)
    if isinstance(plan, BypassPlan):
        if bypassed:
            return plan, reason
        assert before is not None
        if before.additive and plan.additive:
            return None, reason
        # A merge would take effect before the earlier node's bypass.
        return plan, phrase("R-earlier-node-bypasses-layer-result")
    obstacle = next(filter(None, (merge_obstacle(patcher, key) for key in pairs)), None)
    if before is not None:
        obstacle = phrase("R-earlier-node-bypasses-set-mode")
    if obstacle is not None:
        raise LycorisError("E-layer-neither-bypassed-nor-merged", key=path, plan=plan, obstacle=obstacle)
    return None, plan


def _build(
    patcher: Any,
    path: str,
    shapes: Mapping[str, Sequence[int]],
    pairs: Pairs,
) -> BypassPlan | str:
    """The bypass plan of a module, or why its layers can only be merged, in words."""
    module = layer_of(patcher, path)
    if module is None:
        return phrase("R-parameter-own-not-weight-layer")
    geometry = geometry_of(module)
    if isinstance(geometry, str):
        return geometry
    if used_uncalled(patcher, path):
        return phrase("R-model-multiplies-weight-without-calling")
    key = f"{path}.weight"
    if tuple(shapes.get(key, ())) != geometry.shape:
        return phrase("R-weight-does-not-have-shape")
    if enlarged_by_patches(patcher, key):
        return phrase("R-earlier-node-enlarges-weight")
    layers = [
        Slot(match.read(entry.adapter), match.strength, match.timings, match.where)
        for name in ("weight", "bias")
        for entry, match in pairs.get(f"{path}.{name}", ())
    ]
    for layer in layers:
        if reason := bypass_refusal(layer.part):
            return reason
    with located(weight=key):
        return BypassPlan.build(geometry, layers)
