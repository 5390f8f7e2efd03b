"""`docs/quality.md` and its plots, from the results so far.

`python -m benchmarks.quality.summary` reads `results.jsonl` beside this file. Results of earlier versions of
the tasks are left out.
"""

from __future__ import annotations

import math
import platform
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from . import regret
from .curves import ALIKE, Entry, entries, loss_at, reached
from .graph.page import section
from .graph.rows import read as read_graph
from .method import MORE_BATCHES, PROBE_BATCHES, SMALL
from .methods.planned import AUTO
from .results import Results
from .run import METHODS, RESULTS, ROOT, SEEDS, TASKS, pairs
from .tables import count, table
from .task import digest
from .times import REFERENCE, Time, Times
from .times import read as read_times

UNIFORM, GRADIENT = "LoRA", "LoRA, gradient"
"""The methods that others are compared with."""
SINGLE = ("LoRA", "LoRA, gradient", "DoRA", "LoHa", "LoKr", "planned LoKr, gradient")
"""Methods of one algorithm. "auto" must not be worse than any of them."""
SEARCH = "search all"
COMPARED = (AUTO, "LoKr", SEARCH)
"""The methods of the overview."""
BOUND = {"": "", "<": "at most ", ">": "over "}
DOCS = ROOT / "docs"

ABOUT = """\
# What adapters need

`make bench-quality` trains adapters of every method on trained models, and measures how the held-out loss
depends on how many numbers an adapter holds. It wrote this page.

{state}

## How it was measured

No method was changed because of **characters** or **series** before their last run, so claims about methods
rest mainly on these two. The other tasks were used to choose criteria, defaults and candidates.

- **characters**: a GPT on characters (0.2 M), trained by the benchmark on the English texts of
  Mercurial's catalogues, adapted to their German ones. Cross entropy per character.
- **series**: a network of gated causal 1-D convolutions (0.1 M), trained by the benchmark to predict the
  next sample of plucked strings, adapted to bells and glides, all made by a seeded recipe. Cross entropy
  over 64 levels.
- **digits**: a vision transformer (0.2 M), trained by the benchmark on scikit-learn's digits, adapted to
  digits that are inverted and have other labels. Cross entropy.
- **flow**: a flow-matching diffusion transformer (0.3 M), trained by the benchmark on the digits 0 to 4,
  adapted to the digits 5 to 9, each turned, and inverted or mirrored. Mean square error of the velocity.
- **table**: a transformer over the columns of a table (0.2 M), trained by the benchmark to fill in
  missing cells of the lighter half of plotnine's diamonds, adapted to the heavier half. Cross entropy per
  missing cell.
- **text lines**: easyocr's reader of text lines (CRNN: convolutions, two LSTMs, linear layers; 3.8 M),
  adapted to random letters and digits that are rendered upside down and slanted. CTC loss per character.
  The LSTMs are frozen.
- **source code**: all-MiniLM-L6-v2 (a BERT of 6 layers, 22.7 M) with a random frozen classifier,
  adapted to say which of 16 packages of Python's standard library a line or two of source is from.
  Cross entropy.
- **pictures**: a flow-matching UNet of convolutions and attention (1.9 M), trained by the benchmark on
  photographs, textures and coloured shapes at 24 x 24, adapted to pictures of stained tissue as a sensor
  with a Bayer filter sees them. Mean square error of the velocity.

Data and the other bases come from packages and are checked by hash. A base that the benchmark trains differs
on another machine, and so do losses. On the digits, LoRA of rank 4 at the rate 0.01 with seed 0 reaches a
loss of 1.427 with the base that an EPYC trained, and 1.324 with the base that a Xeon trained. Nearly all of
these rows are from the EPYC.

Adapters are on all linear layers and convolutions of the base, with alpha = rank. All methods are trained on
the same small batches, by AdamW without weight decay; the rate rises over the first 5 % of the steps and
falls as a cosine to 0. Short trainings have {short} steps, long ones {long}. Fewer methods were trained on
{small}.

The learning rate of each method **at each size** is the best one on a separate split of the data. Rates half
a decade apart were tried (for some rows, a quarter of a decade), until the next lower and the next higher
rate were both worse. "edge" marks rows where one of these two is missing. Figures are means over the seeds 0,
1 and 2, or over as many as "seeds" says, on a third split that no choice used. Differences between figures of
one seed may be chance. "numbers" counts the trained values, which are as many as the file holds. "x 1" means
as many numbers as a LoRA of rank 1 on every layer has. Numbers within 2 % of each other count as equal.

Methods that look at gradients before the training take {probe} batches of the training split. "{name}" takes
{probe} to {more}: it stops when the gradients of the two halves of the batches agree, as the command line and
the node do. "a step" and "the start" are CPU times. Their unit is a step of {unit}, which was trained in turn
with each method (`python -m benchmarks.quality.times`, {processors}).

A training without a given rate takes the one of `lycoris_ops.train.rates`. The three numbers of its formula
were chosen on the tasks other than characters and series. At this rate the loss is higher than at the best
rate; the means over methods and sizes are {by_task}.
On the last two of these tasks another constant factor in the formula would not lower the mean: on the text
lines half a decade in the rate decides whether the loss falls from 4.5 to 0.2 or not.
The means of each kind are {by_kind};
without the text lines they are {without}.
These are figures of one seed, interpolated between rates half a decade apart. Plans take the rate of a LoRA
with as many numbers.

"{name}" and "planned by first step" divide a budget by what Adam's first step gains, "planned by energy" by
the squares of the norms of the gradient's components, and all other plans by the roots of these norms, as
this library did before. The root was chosen from four powers, on the text lines, the source code and the
pictures, at one budget and with one seed.
"""


OVERVIEW = f"""\
## In short

"Share" is how many numbers a method needs for the loss of uniform LoRA x {REFERENCE}, as a share of that
LoRA's numbers. It is an upper bound where the smallest size of the method already has a lower loss. "Loss" is
how much higher or lower the method's loss is at x {REFERENCE}. Each method has its own best rate, except
"search all": a race finds its kind and rate, and may cost as much as a short training, or 0.4 times as much
as a long one. "Time" is the CPU time of the race alone, and then of race and training together, in trainings
of LoRA x {REFERENCE}. A step of LoKr takes {{lokr}} times as long as a step of LoRA. Races keep back a
quarter of the training's steps if LoKr races, because it makes the training longer if it wins, and 6 % for a
planned LoRA. Older races, which had more and shorter heats, gave the losses of "search all" in short
trainings at x 16 and on text lines and source code, of "LoRA, search rate" at x 16, and of "OFT, search rate"
on other tasks than the digits, and the times of short races at x 1 and x 16. Means of shares are geometric,
and shares above 1 count as 1.
"""

PARTS = {True: "Tasks on which nothing was tuned", False: "Tasks on which methods were chosen"}
"""The parts of the page, by `Task.untuned`."""


def of_steps(length: str) -> str:
    """The steps of the trainings of a length, with the tasks that have so many."""
    names: dict[int, list[str]] = {}
    for task in TASKS:
        names.setdefault(task.steps[length], []).append(task.name)
    return " or ".join(f"{steps} ({', '.join(group)})" for steps, group in names.items())


def by_method(found: Iterable[Entry]) -> dict[str, list[Entry]]:
    """The entries of each method by size, methods in the order of METHODS."""
    known: dict[str, list[Entry]] = {method.name: [] for method in METHODS}
    for entry in found:
        known[entry.method].append(entry)
    return {name: sorted(group, key=lambda entry: entry.numbers) for name, group in known.items() if group}


def points(group: Iterable[Entry]) -> list[tuple[float, float]]:
    return [(entry.numbers, entry.loss) for entry in group]


def losses(methods: Mapping[str, list[Entry]], times: Times) -> str:
    rows = [
        [
            name if number == 0 else "",
            "–" if entry.size == 0 else f"x {entry.size:g}",
            count(entry.numbers),
            f"{entry.loss:.4f}" + (f" ± {entry.spread:.4f}" if entry.seeds > 1 else ""),
            str(entry.seeds),
            "its own" if entry.searched else f"{entry.lr:.1e}" + (" (edge)" if entry.edge else ""),
            *timed(times.get(entry.key)),
        ]
        for name, group in methods.items()
        for number, entry in enumerate(group)
    ]
    titles = "method", "budget", "numbers", "held-out loss", "seeds", "rate", "a step", "the start"
    return table(titles, rows)


def timed(time: Time | None) -> tuple[str, str]:
    return ("–", "–") if time is None else (f"{time.step:.2f}", f"{time.start:.1f}")


def share(found: tuple[str, float], whole: float) -> str:
    """Numbers as a share of `whole`. If `found` is only a bound, "at most" or "over" says so."""
    bound, numbers = found
    return f"{BOUND[bound]}{numbers / whole:.2f}"


def needed(methods: Mapping[str, list[Entry]], against: str) -> str:
    """For each rank of `against`, the share of its numbers with which the other methods reach its loss."""
    targets = methods[against]
    rows = [
        [name, *(share(reached(points(group), t.loss, logarithmic=True), t.numbers) for t in targets)]
        for name, group in methods.items()
        if name != against and group[0].size > 0
    ]
    return table(["method", *(f"r {target.size:g}: {target.loss:.4f}" for target in targets)], rows)


def steps(methods: Mapping[str, list[Entry]], times: Times) -> str:
    """For each rank of uniform LoRA, the steps in which others with no more numbers reach its final loss."""
    targets = methods[UNIFORM]
    rows: list[list[str]] = []
    for name, group in methods.items():
        if name == UNIFORM or group[0].size == 0:
            continue
        rows.append([name, *(fewest(group, target, times) for target in targets)])
    total = targets[0].curve[-1][0]
    return table(["method", *(f"r {t.size:g}: {t.loss:.4f} after {total}" for t in targets)], rows)


def fewest(group: Sequence[Entry], target: Entry, times: Times) -> str:
    """The fewest steps until the target's final loss, at as many numbers or fewer.

    They are counted by time, in steps of the target, with the start included.
    """
    group = [entry for entry in group if entry.numbers <= ALIKE * target.numbers]
    if not group:
        return "–"
    found: list[tuple[float, str]] = []
    for entry in group:
        bound, number = reached(entry.curve, target.loss, logarithmic=False)
        if bound == ">":
            continue
        own, unit = times.get(entry.key), times.get(target.key)
        if not own or not unit:
            return "not timed"
        found.append(((number * own.step + own.start) / unit.step, bound))
    if not found:
        return "not reached"
    steps, bound = min(found, key=lambda one: one[0])
    return f"{BOUND[bound]}{steps:.0f}"


def overview(
    groups: Mapping[tuple[str, str], Mapping[str, list[Entry]]], untuned: Mapping[str, bool], times: Times
) -> str:
    """The losses of plans, LoKr and the race beside uniform LoRA of rank 4, and their means over tasks."""
    lines: list[list[str]] = []
    found: list[tuple[bool, list[float]]] = []
    for (task, length), methods in groups.items():
        target = next((entry for entry in methods.get(UNIFORM, ()) if entry.size == REFERENCE), None)
        if target is None or AUTO not in methods:
            continue
        shares = [share_of(methods.get(name, []), target) for name in COMPARED]
        worse = [loss / target.loss - 1 for loss in same_size(methods, target)]
        found.append((untuned[task], [*shares, *worse]))
        own = [f"{share:.2f}" if share < math.inf else "over 1" for share in shares]
        more = [f"{100 * one:+.0f} %" if math.isfinite(one) else "–" for one in worse]
        lines.append(
            [f"{task}, {length}", f"{target.loss:.4f}", *own, *more, search_time(methods, target, times)]
        )
    for title, wanted in (("untuned", (True,)), ("all", (True, False))):
        columns = zip(*(values for untried, values in found if untried in wanted), strict=True)
        # A share above 1 counts as 1: LoRA itself needs no more.
        values = [[min(value, 1.0) for value in column if not math.isnan(value)] for column in columns]
        if not values:
            continue
        shares = [f"{statistics.geometric_mean(column):.2f}" for column in values[: len(COMPARED)]]
        worse = [
            f"{100 * statistics.fmean(column):+.0f} %" if column else "–"
            for column in values[len(COMPARED) :]
        ]
        lines.append([f"**mean, {title}**", "", *shares, *worse, ""])
    titles = ["task", f"LoRA x {REFERENCE}", *(f"share, {name}" for name in COMPARED)]
    titles += [f"loss, {name} x {REFERENCE}" for name in COMPARED]
    return table([*titles, f"time, {SEARCH} x {REFERENCE}"], lines)


def search_time(methods: Mapping[str, list[Entry]], target: Entry, times: Times) -> str:
    """The time of a race, and that of race and training, in trainings of the target, LoRA x REFERENCE.

    Times are in steps of that LoRA already. Its own row differs from 1 only by chance.
    """
    own = next((times.get(entry.key) for entry in methods.get(SEARCH, ()) if entry.size == target.size), None)
    if own is None:
        return "–"
    race = own.start / target.curve[-1][0]
    return f"{race:.2f}, {race + own.step:.2f}"


def share_of(group: Sequence[Entry], target: Entry) -> float:
    """The share of the target's numbers with which a method reaches its loss. It is an upper bound if even
    the smallest size here reaches it, inf if no size does, and nan if the method is not here."""
    if not group:
        return math.nan
    bound, numbers = reached(points(group), target.loss, logarithmic=True)
    return math.inf if bound == ">" else numbers / target.numbers


def same_size(methods: Mapping[str, list[Entry]], target: Entry) -> list[float]:
    """The loss of each of COMPARED at the target's size; nan where it is not here."""
    return [
        next((entry.loss for entry in methods.get(name, ()) if entry.size == target.size), math.nan)
        for name in COMPARED
    ]


def auto(methods: Mapping[str, list[Entry]]) -> str:
    """The loss of AUTO, at each of its sizes, less that of the best of SINGLE at as many numbers."""
    words: list[str] = []
    for entry in methods.get(AUTO, ()):
        others = {
            name: loss
            for name in SINGLE
            if name in methods and (loss := loss_at(points(methods[name]), entry.numbers)) is not None
        }
        if others:
            name = min(others, key=lambda name: others[name])
            words.append(f"x {entry.size:g}: {entry.loss - others[name]:+.4f} ({name})")
    return "; ".join(words)


def plot(task: str, length: str, methods: Mapping[str, list[Entry]], file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    markers = "osD^v<>Phx*"
    for number, (name, group) in enumerate(methods.items()):
        finite = [entry for entry in group if math.isfinite(entry.loss)]
        if not finite:
            continue
        if finite[0].size == 0:
            axes.axhline(finite[0].loss, color="grey", linestyle=":", label=name)
            continue
        axes.errorbar(
            [entry.numbers for entry in finite],
            [entry.loss for entry in finite],
            yerr=[entry.spread for entry in finite],
            marker=markers[number % len(markers)],
            linestyle="--" if name.startswith("PEFT") else "-",
            linewidth=2.0 if name in (UNIFORM, GRADIENT, AUTO) else 1.0,
            capsize=2,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("numbers in the adapter")
    axes.set_ylabel("held-out loss")
    axes.set_title(f"{task}, {length} training")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=90)


def main() -> None:
    results, times = Results(RESULTS), read_times()
    recipes = {digest(task): task for task in TASKS}
    kept = [result for result in results if result.run.recipe in recipes]
    seconds = sum(
        result.step_seconds * recipes[result.run.recipe].steps[result.run.length] + result.start_seconds
        for result in kept
    )
    found = entries(kept, recipes)
    wanted = {
        (task.name, length, method.name, size)
        for method, task in pairs(TASKS, METHODS)
        for length, sizes in (("short", method.sizes), ("long", method.long))
        for size in sizes
    }
    here = [e for e in found if (e.task, e.length, e.method, e.size) in wanted]
    complete = sum(entry.seeds == len(SEEDS) and not entry.edge for entry in here)
    commits = sorted({result.commit for result in kept})
    counts = Counter(result.machine for result in kept)
    machines = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    state = (
        f"{len(kept)} trainings took {seconds / 3600:.1f} hours of CPU time on one core, without the time to "
        f"measure losses. Processors, with the number of trainings: {machines}. Torch {torch.__version__}, "
        f"Python {platform.python_version()}. Commits: {', '.join(commits)}. The benchmark has {len(wanted)} "
        f"rows, each for a task, a length, a method and a size. {len(here)} of them are here, {complete} "
        "with all seeds."
    )
    lengths = {name: of_steps(name) for name in ("short", "long")}
    groups = {
        (task.name, length): by_method(e for e in found if e.task == task.name and e.length == length)
        for task in TASKS
        for length in ("short", "long")
    }
    untuned = {task.name: task.untuned for task in TASKS}
    groups = {key: methods for key, methods in groups.items() if methods}
    lost = regret.regrets(kept)
    by_task, by_kind = regret.in_words(lost)
    _, without = regret.in_words({key: found for key, found in lost.items() if key[0] != "text lines"})
    about = ABOUT.format(
        state=state,
        by_task=by_task,
        by_kind=by_kind,
        without=without,
        probe=PROBE_BATCHES,
        more=MORE_BATCHES,
        name=AUTO,
        unit=f"{UNIFORM} x {REFERENCE}",
        small=f"{', '.join(SMALL[:-1])} and {SMALL[-1]}",
        processors=" and ".join(sorted({time.machine for time in times.values()})),
        **lengths,
    )
    lokr = [time.step for time in times.values() if time.method == "LoKr"]
    slow = OVERVIEW.format(lokr=f"{min(lokr):.1f} to {max(lokr):.1f}")
    parts = [about, slow, overview(groups, untuned, times), section(read_graph())]
    part = ""
    for (task, length), methods in groups.items():
        if (title := PARTS[untuned[task]]) != part:
            parts.append(f"## {title}\n")
            part = title
        name = f"quality-{task.replace(' ', '-')}-{length}.png"
        plot(task, length, methods, DOCS / name)
        parts.append(f"### {task[0].upper()}{task[1:]}, {length} training\n\n![]({name})\n")
        parts.append(losses(methods, times))
        if compared := auto(methods):
            parts.append(
                f"Loss of `{AUTO}` minus that of the best single algorithm with as many numbers: "
                f"{compared}.\n"
            )
        for against in (UNIFORM, GRADIENT):
            if against in methods:
                parts.append(
                    f"Numbers that a method needs for the loss of {against} at each rank, as a share of that "
                    "LoRA's:\n"
                )
                parts.append(needed(methods, against))
        if UNIFORM in methods:
            parts.append(
                "Steps to the final loss of uniform LoRA at each rank, with at most as many numbers. They "
                "are counted by time, in steps of that LoRA, and include the start:\n"
            )
            parts.append(steps(methods, times))
    (DOCS / "quality.md").write_text("\n".join(parts), encoding="utf-8")
    print(f"{DOCS / 'quality.md'}: {len(kept)} trainings")


if __name__ == "__main__":
    main()
