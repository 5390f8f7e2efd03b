"""What a person sees of a training: before it, while it runs, where it was stopped, and after it."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from PIL import Image, ImageDraw

from tests.harness.page import building

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.page import Ui

pytestmark = [
    pytest.mark.browser,
    pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"]),
]

BUILD = building(
    "([training, linked])",
    """
    const base = make("CheckpointLoaderSimple", 20, 60, {ckpt_name: "base.safetensors"})
    const data = make("LycorisDataset", 20, 260, {folder: "discs", resolution: "64"})
    const train = make("LycorisTrain", 480, 60, training)
    for (const [output, input] of ["model", "clip", "vae"].entries()) join(base, output, data, input)
    join(base, 0, train, "model")
    join(data, 0, train, "latents")
    join(data, 1, train, "positive")
    if (linked) join(base, 2, train, "vae")
""",
)
TRAIN = "app.graph.nodes.find(({type}) => type === 'LycorisTrain')"
PANEL = ".lycoris-training"
FIRST = ["steps", "learning_rate", "algorithm", "rank", "filename_prefix"]
"""The widgets that are seen before anything is unfolded."""
LINKS = [
    *("model", "latents", "positive", "plan", "stack", "masks", "empty_caption", "clip", "captions", "vae"),
    *("sample_positive", "regularisation_latents", "regularisation_positive", "regularisation_captions"),
    *("validation_latents", "validation_positive", "validation_captions", "low_noise_model"),
]


@pytest.fixture
def base(base: Path) -> Path:
    """The base directory with two small pictures and no training."""
    folder = base / "input" / "discs"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("crimson", "navy"):
        picture = Image.new("RGB", (64, 64), "beige")
        ImageDraw.Draw(picture).ellipse([16, 16, 48, 48], fill=name)
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name} disc", encoding="utf-8")
    # The folder itself stays: the host lists it, and fails where it is gone.
    for training in (base / "output" / "loras").glob("*"):
        shutil.rmtree(training) if training.is_dir() else training.unlink()
    return base


def build(ui: Ui, vue: bool, *, vae: bool = False, **training: Any) -> None:
    ui.render_with_vue(vue)
    ui.page.evaluate(BUILD, [{"algorithm": "lora", **training}, vae])
    ui.page.wait_for_timeout(300)
    show(ui, {**ui.serialized(), "id": str(uuid4())})


def show(ui: Ui, workflow: dict[str, Any]) -> None:
    """Open a workflow, and wait until the server has been asked about it."""
    ui.load(workflow)
    ui.look(60, 60)
    usual(ui, "rank", "16")
    ui.page.wait_for_timeout(500)


def inputs(ui: Ui) -> list[str]:
    """The inputs of the training that have no widget."""
    return ui.page.evaluate(f"{TRAIN}.inputs.filter(({{widget}}) => !widget).map(({{name}}) => name)")


def linked(ui: Ui) -> list[str]:
    is_linked = f"(_, slot) => {TRAIN}.isInputConnected(slot)"
    return ui.page.evaluate(f"{TRAIN}.inputs.filter({is_linked}).map(({{name}}) => name)")


def usual(ui: Ui, name: str, value: str) -> None:
    """Wait until what is usual stands behind the name of an input, in the words that the user sees."""
    label = f"{TRAIN}.widgets.find(one => one.name === '{name}').label"
    ui.page.wait_for_function(f"{label} === '{name} ({value})'")


def values(ui: Ui) -> dict[str, Any]:
    found = f"{TRAIN}.widgets.filter(({{type}}) => !type.startsWith('lycoris-'))"
    return ui.page.evaluate(f"Object.fromEntries({found}.map(({{name, value}}) => [name, value]))")


def sent(ui: Ui) -> dict[str, Any]:
    """The inputs of the training as they would be sent."""
    (found,) = (one["inputs"] for one in ui.prompt().values() if one["class_type"] == "LycorisTrain")
    return found


def linked_to(ui: Ui) -> dict[str, Any]:
    """The outputs that the inputs of the training would get, by the inputs' names."""
    return {name: value for name, value in sent(ui).items() if isinstance(value, list)}


def kept(ui: Ui) -> dict[str, Any]:
    (found,) = (one for one in ui.serialized()["nodes"] if one["type"] == "LycorisTrain")
    return found


def change(ui: Ui, name: str, value: Any) -> None:
    """Give a widget a value as a user does."""
    ui.page.evaluate(
        f"""([name, value]) => {{
            const widget = {TRAIN}.widgets.find(widget => widget.name === name)
            widget.value = value
            widget.callback?.(value)
            app.extensionManager.workflow.activeWorkflow.changeTracker.checkState?.()
        }}""",
        [name, value],
    )
    ui.page.wait_for_timeout(700)


def words(ui: Ui) -> str:
    found = ui.page.locator(f"{PANEL} .words")
    return found.inner_text() if found.count() else ""


def listen(ui: Ui) -> None:
    """Keep what the panel says from now on."""
    ui.page.evaluate(
        f"""() => {{
            if (window.said) return
            window.said = []
            const hear = () => {{
                for (const box of document.querySelectorAll("{PANEL} .words, .lycoris-report .first"))
                    if (!said.slice(-2).includes(box.textContent)) said.push(box.textContent)
            }}
            hear()
            const all = {{childList: true, characterData: true, subtree: true}}
            new MutationObserver(hear).observe(document, all)
        }}"""
    )


def follow(ui: Ui, until: str) -> list[str]:
    """What the panel says, until it says what matches."""
    listen(ui)
    ui.page.wait_for_function(f"said.some(text => /{until}/.test(text))", timeout=180_000)
    return ui.page.evaluate("said.splice(0)")


def stop(ui: Ui) -> None:
    """Press Stop, and wait for the offer to go on."""
    ui.page.evaluate("void app.api.interrupt()")
    ui.page.locator(f"{PANEL}[data-stage=stopped]").wait_for()
    ui.page.wait_for_timeout(700)


def ended(ui: Ui) -> str:
    ui.page.wait_for_function(
        "heard.some(({name}) => ['execution_success', 'execution_error'].includes(name))", timeout=180_000
    )
    ui.page.wait_for_timeout(1000)
    return ui.page.evaluate("heard.splice(0).at(-1).name")


@pytest.mark.every_front_end
def test_at_first_sight_it_shows_what_is_asked_for_and_what_is_usual(
    ui: Ui, vue: bool, screenshot: Callable[[str], None]
) -> None:
    build(ui, vue)
    assert inputs(ui) == LINKS and not ui.page.locator(PANEL).count()
    usual(ui, "learning_rate", "0.0001")
    if vue:
        ui.page.get_by_text("rank (16)").wait_for()
    shown = ui.page.evaluate(f"{TRAIN}.widgets.filter(one => !one.options.advanced).map(({{name}}) => name)")
    assert shown == FIRST
    screenshot(f"training-first-sight-{'vue' if vue else 'canvas'}")
    # It depends on the model, and is no part of a value.
    found = values(ui)
    assert (found["learning_rate"], found["rank"]) == ("auto", "auto")
    assert (sent(ui)["learning_rate"], sent(ui)["rank"]) == ("auto", "auto")
    assert kept(ui)["widgets_values"][:4] == [1000, "auto", "lora", "auto"]
    # It follows the kind, and goes where a number is typed.
    change(ui, "algorithm", "lokr")
    usual(ui, "learning_rate", "0.001")
    change(ui, "learning_rate", "0.0005")
    change(ui, "rank", "")
    usual(ui, "rank", "16")
    label = "widgets.find(one => one.name === 'learning_rate').label"
    assert ui.page.evaluate(f"{TRAIN}.{label}") == "learning_rate"
    assert sent(ui)["learning_rate"] == "0.0005"

    # A workflow of an earlier version: numbers by their places, and links by the slots of all inputs.
    ui.page.evaluate(
        f"""() => {{
            const data = app.graph.nodes.find(({{type}}) => type === "LycorisDataset")
            const train = {TRAIN}
            for (const [output, name] of [[4, "empty_caption"], [5, "validation_latents"]])
                data.connect(output, train, train.inputs.findIndex(input => input.name === name))
        }}"""
    )
    whole, before = ui.serialized(), linked_to(ui)
    links = ["model", "latents", "positive", "empty_caption", "validation_latents"]
    assert linked(ui) == links and set(before) == {*links}
    for folded in (True, False):
        ui.page.evaluate(f"{TRAIN}.showAdvanced = {str(folded).lower()}")
        ui.page.wait_for_timeout(300)
        assert inputs(ui) == LINKS and linked_to(ui) == before
    (node,) = (one for one in whole["nodes"] if one["type"] == "LycorisTrain")
    node["widgets_values"][:4] = [1000, 0.0002, "lora", 0]
    show(ui, whole)
    assert inputs(ui) == LINKS and linked(ui) == links and linked_to(ui) == before
    assert (sent(ui)["learning_rate"], sent(ui)["rank"]) == (0.0002, 0)

    # Earlier versions saved the node without the inputs that it folded, and with the others in other places.
    names = ["model", "latents", "positive", "empty_caption", "validation_latents"]
    unlinked = [one for one in node["inputs"] if one["name"] not in LINKS or one["name"] == "vae"]
    of_name = {one["name"]: one for one in node["inputs"]}
    node["inputs"] = [*(of_name[name] for name in names), *unlinked]
    for link in whole["links"]:
        if link[3] == node["id"]:
            link[4] = next(slot for slot, one in enumerate(node["inputs"]) if one["link"] == link[0])
    show(ui, whole)
    assert {*inputs(ui)} == {*LINKS} and linked_to(ui) == before
    assert ui.errors == []


@pytest.mark.every_front_end
def test_a_stopped_training_is_offered_whatever_ran_in_between(
    ui: Ui, vue: bool, screenshot: Callable[[str], None]
) -> None:
    page, name = ui.page, "vue" if vue else "canvas"
    build(ui, vue, steps=120, filename_prefix=f"loras/{name}")
    before = kept(ui)["size"]
    listen(ui)
    ui.press_run()
    said = follow(ui, "^Step [3-9] of 120, ")
    text = "\n".join(said)
    for each in ("Encoding captions 2 of 2", "Loading the model"):
        assert each in text
    assert re.search(r"^Step \d of 120, [\d.]+ s a step, \d+ (s|min) left, loss [\d.]+$", text, re.MULTILINE)
    assert kept(ui)["size"] == before
    screenshot(f"training-runs-{name}")
    # F5 while it runs: its steps take longer than a page.
    ui.reload()
    follow(ui, r"^Step ([4-9]|\d\d+) of 120, ")
    stop(ui)
    at = int(re.findall(r"^Stopped at (\d+) of 120$", words(ui))[0])
    assert page.locator(f"{PANEL} button").all_inner_texts() == ["Continue", "Start over"]
    screenshot(f"training-stopped-{name}")

    # Another name, other settings, F5: each has its own offer, or none.
    change(ui, "filename_prefix", "loras/other")
    assert not page.locator(PANEL).count()
    change(ui, "steps", 1)
    page.evaluate("heard.length = 0")
    ui.press_run()
    assert ended(ui) == "execution_success"
    assert not page.locator(f"{PANEL} button").count() and page.locator(f"{PANEL} svg").count() == 1
    screenshot(f"training-done-{name}")
    change(ui, "filename_prefix", f"loras/{name}")
    assert "steps was 120 and is 1" in page.locator(f"{PANEL} .differences").inner_text()
    screenshot(f"training-other-settings-{name}")
    # With `resume`, Run takes the present settings.
    change(ui, "resume", True)
    goes = page.locator(f"{PANEL} .differences").inner_text()
    assert "Goes on with changed settings: steps was 120" in goes
    assert page.locator(f"{PANEL} button").all_inner_texts() == ["Continue", "Start over"]
    change(ui, "resume", False)
    change(ui, "steps", 120)
    ui.reload()
    page.locator(f"{PANEL}[data-stage=stopped]").wait_for()
    assert words(ui) == f"Stopped at {at} of 120"

    # Start over makes another one, and goes on with it.
    page.get_by_role("button", name="Start over").click()
    follow(ui, "^Step [2-9] of 120, ")
    # Meanwhile a node before it, whose result is in the host's cache, shows its own report.
    page.locator(".lycoris-report .first", has_text="2 pictures in discs").wait_for()
    stop(ui)
    folder = ui.server.base / "output" / "loras"
    assert (folder / f"{name}_00002_-checkpoints" / "last.safetensors").exists()
    assert int(re.findall(r"^Stopped at (\d+) of 120$", words(ui))[0]) < at
    change(ui, "steps", 119)
    page.evaluate("heard.length = 0")
    page.get_by_role("button", name="Take its settings and continue").click()
    follow(ui, r"^Step \d+ of 120, ")
    # In another tab the same key is another node's.
    first_tab = ui.serialized()
    other = {**copy.deepcopy(first_tab), "id": str(uuid4())}
    (node,) = (one for one in other["nodes"] if one["type"] == "LycorisTrain")
    node["widgets_values"][4] = "loras/other"
    show(ui, other)
    assert values(ui)["filename_prefix"] == "loras/other" and not page.locator(PANEL).count()
    show(ui, first_tab)
    assert ended(ui) == "execution_success"
    assert values(ui)["steps"] == 120 and (folder / f"{name}_00002_.safetensors").exists()
    assert page.locator(f"{PANEL}[data-stage=done] svg").count() == 1
    # While the page was loaded anew, messages came before anything listened.
    assert not [error for error in ui.errors if "Unknown message type lycoris.training" not in error]


@pytest.mark.every_front_end
def test_samples_are_in_a_strip_beside_the_curve(
    ui: Ui, vue: bool, screenshot: Callable[[str], None]
) -> None:
    page, name = ui.page, "vue" if vue else "canvas"
    build(ui, vue, vae=True, steps=2, filename_prefix=f"loras/sampled-{name}")
    page.evaluate("heard.length = 0")
    ui.press_run()
    said = follow(ui, "^Sampling at step 2: 20 of 20")
    assert any(one.startswith("Sampling at step 0: ") for one in said)
    assert ended(ui) == "execution_success"
    strip = page.locator(f"{PANEL} .strip button")
    assert strip.all_inner_texts() == ["step 0", "step 2"]
    page.wait_for_function(
        f"[...document.querySelectorAll('{PANEL} .strip img')].every(image => image.naturalWidth > 0)"
    )
    screenshot(f"training-samples-{name}")
    strip.last.click()
    assert page.locator(f"{PANEL} .large img").get_attribute("alt") == "step 2"
    page.wait_for_timeout(500)
    screenshot(f"training-large-{name}")
    # It comes back with the page.
    ui.reload()
    strip.last.wait_for()
    assert strip.all_inner_texts() == ["step 0", "step 2"]
    # In the colours of the theme.
    page.evaluate("app.ui.settings.setSettingValueAsync('Comfy.ColorPalette', 'light')")
    page.wait_for_timeout(1000)
    screenshot(f"training-light-{name}")
    page.evaluate("app.ui.settings.setSettingValueAsync('Comfy.ColorPalette', 'dark')")
    assert ui.errors == []


def test_settings_of_another_trainer_are_pasted(ui: Ui, vue: bool, screenshot: Callable[[str], None]) -> None:
    build(ui, vue)
    ui.page.evaluate(
        f"""() => {{
            const ours = app.extensions.find(({{name}}) => name === "lycoris")
            const [item] = ours.getNodeMenuItems({TRAIN})
            item.callback()
        }}"""
    )
    box = ui.page.locator("dialog.lycoris-paste")
    box.get_by_role("textbox").fill("no config")
    box.get_by_role("button", name="Take over").click()
    box.get_by_text("the text is not a config").wait_for()
    box.get_by_role("textbox").fill(
        "network_dim = 8\nnetwork_alpha = 4\nunet_lr = 2e-4\nmax_grad_norm = 0.5\nkeep_tokens = 1\n"
        'resolution = "768,768"\n'
    )
    box.get_by_role("button", name="Take over").click()
    box.get_by_text("keep_tokens: set on LyCORIS Training Pictures").wait_for()
    box.get_by_text("resolution = 768: set on LyCORIS Training Pictures").wait_for()
    pictures = "app.graph.nodes.find(({type}) => type === 'LycorisDataset')"
    shown = ui.page.evaluate(f"{pictures}.widgets.find(({{name}}) => name === 'resolution').value")
    assert shown == "768"
    screenshot(f"training-pasted-{'vue' if vue else 'canvas'}")
    box.get_by_role("button", name="Close").click()
    box.wait_for(state="detached")
    found = sent(ui)
    assert (found["rank"], found["learning_rate"], found["layers"]) == ("8", "0.0002", "own")
    assert (found["layers.alpha"], found["optimisation.max_grad_norm"]) == ("4", 0.5)
