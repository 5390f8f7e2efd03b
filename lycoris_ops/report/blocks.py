"""The blocks of a model and what adapters do in them, in words."""

from __future__ import annotations

from ..errors import printable
from ..messages import number_of, phrase
from ..stack.survey import AdapterSurvey, Effect, Survey
from .words import few, paragraph, plain_name, unmeasured


def describe_blocks(survey: Survey) -> str:
    """The verdict, then a table of the blocks for each adapter; without adapters, a list of the blocks."""
    wide = max(map(len, survey.blocks), default=0)
    text = [blocks_verdict(survey)]
    if not survey.adapters:
        text += [f"  {name:{wide}}  {number_of(count, 'weight')}" for name, count in survey.blocks.items()]
    return "\n\n".join([paragraph(text), *(_table(survey, adapter, wide) for adapter in survey.adapters)])


def blocks_verdict(survey: Survey) -> str:
    """In which block each adapter changes most, in a sentence; without adapters, the number of blocks."""
    phrases: list[str] = []
    for own in survey.adapters:
        block = max(survey.blocks, key=own.share, default="")
        name = plain_name(own.entry.name)
        phrases.append(
            phrase("R-in", name=name, block=block, share=own.share(block))
            if block in own.effects
            else phrase("R-nowhere", name=name)
        )
    if not phrases:
        return f"{number_of(len(survey.blocks), 'block')}, {number_of(sum(survey.blocks.values()), 'weight')}"
    return printable(phrase("R-changed-most", phrases=few(phrases)))


def _table(survey: Survey, adapter: AdapterSurvey, wide: int) -> str:
    met = sum(len(effect.layers) for effect in adapter.effects.values())
    layers = adapter.resolution.layers
    lines = [
        adapter.entry.name,
        f"  {phrase('R-layers-match-model-share-part', met=met, layers=layers)}",
        *unmeasured(adapter.entry),
    ]
    if adapter.unmeasured:
        lines.append(f"  {phrase('R-changes-unmeasured', changes=adapter.unmeasured)}")
    lines.append(f"  {'block':{wide}}  {'layers':>6}  {'strength':>10}  {'share':>6}")
    for block in survey.blocks:
        effect = adapter.effects.get(block)
        if effect is None:
            lines.append(f"  {block:{wide}}  {'-':>6}")
        else:
            share = f"{adapter.share(block):.1%}"
            lines.append(f"  {block:{wide}}  {len(effect.layers):>6}  {_strengths(effect):>10}  {share:>6}")
    return paragraph(lines)


def _strengths(effect: Effect) -> str:
    low, high = min(effect.strengths), max(effect.strengths)
    return f"{low:.4g}" if low == high else f"{low:.3g}..{high:.3g}"
