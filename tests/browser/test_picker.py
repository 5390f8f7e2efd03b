"""The picker of files of Load LoRA / LyCORIS (rows), by mouse and by keyboard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save, save_file

from tests.harness.assets import assets
from tests.harness.page import building

if TYPE_CHECKING:
    from playwright.sync_api import Locator

    from tests.harness.page import Ui

pytestmark = pytest.mark.browser

MANY = 5000
INK, NEON, ALICE, BOB = (
    f"picked/{name}.safetensors" for name in ("styles/ink wash", "styles/neon", "alice", "bob")
)
PAGE, CUT = "picked/page.safetensors", "picked/cut.safetensors"


def clip(path: Path) -> None:
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libvpx", rate=8)
        stream.width, stream.height = 128, 160
        for shade in range(0, 256, 16):
            picture = np.full((160, 128, 3), (shade, 90, 255 - shade), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        file.mux(stream.encode())


@pytest.fixture
def files(loras: Path) -> Path:
    """Files with pictures, a clip, another family, tables beside them, and two that are broken."""
    folder = loras / "picked"
    (folder / "styles").mkdir(parents=True)
    tensors = load_file(assets() / "loras" / "lora.safetensors")
    told = {"modelspec.trigger_phrase": "brush by hand", "ss_tag_frequency": json.dumps({"1_a": {"tree": 3}})}
    save_file(tensors, loras / INK, told)
    save_file(tensors, loras / NEON)
    save_file(tensors, loras / ALICE, {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"})
    save_file(tensors, loras / BOB)
    Image.new("RGB", (300, 400), "purple").save(folder / "styles" / "ink wash.preview.png")
    Image.new("RGB", (400, 300), "orange").save(folder / "alice.jpg")
    clip(folder / "bob.webm")
    manager = {"model_name": "Bob the Builder", "tags": ["person"], "civitai": {"trainedWords": ["b0b man"]}}
    (folder / "bob.metadata.json").write_text(json.dumps({**manager, "favorite": True}))
    (folder / "styles" / "neon.civitai.info").write_text(json.dumps({"trainedWords": ["glowing sign"]}))
    (loras / PAGE).write_text("<!DOCTYPE html><html><body>Sign in to download</body></html>")
    (loras / CUT).write_bytes((loras / INK).read_bytes()[:-1000])
    return folder


BUILD = building(
    "text",
    """
    const load = make("LycorisAdapterRows", 0, 0, {rows: text})
    const apply = make("LycorisApplyStack", 1000, 0)
    join(load, 0, apply, "stack")
    join(make("CheckpointLoaderSimple", 1000, 300), 0, apply, "model")
""",
)


class Picker:
    """The node with a model behind it, and its picker."""

    def __init__(self, ui: Ui, vue_nodes: bool, *files: str) -> None:
        self.ui, self.page = ui, ui.page
        ui.render_with_vue(vue_nodes)
        ui.page.evaluate(BUILD, json.dumps({"rows": [{"file": file} for file in files]}))
        ui.look(200, 150)
        self.items = self.page.locator(".lycoris-item:not(.lycoris-heading)")
        self.active = self.page.locator(".lycoris-item.lycoris-active")
        self.search = self.page.get_by_label("search files")
        self.side = self.page.locator(".lycoris-side")
        self.heads = self.page.locator(".lycoris-heading")

    def add(self) -> None:
        self.page.get_by_role("button", name="+ Add LoRA / LyCORIS").click()
        self.items.first.wait_for()

    def item(self, file: str) -> Locator:
        return self.page.locator(".lycoris-picker").get_by_title(file, exact=True)

    def is_beside_rows(self) -> bool:
        rows, panel = (
            self.page.locator(place).bounding_box() for place in (".lycoris-rows", ".lycoris-picker")
        )
        assert rows and panel
        return panel["x"] >= rows["x"] + rows["width"]

    def shown(self) -> list[str]:
        """The names of the files, in their order."""
        return [name.strip() for name in self.items.locator(".lycoris-name").all_inner_texts()]

    def read(self) -> None:
        """Wait until all files are read."""
        self.page.wait_for_function("!/read/.test(document.querySelector('.lycoris-bottom').innerText)")

    def rows(self) -> list[str]:
        (node,) = (node for node in self.ui.prompt().values() if node["class_type"] == "LycorisAdapterRows")
        return [row["file"] for row in json.loads(node["inputs"]["rows"])["rows"]]

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)


@pytest.mark.every_front_end(vue_nodes=True)
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_files_are_seen_found_and_chosen_by_keyboard_and_mouse(
    ui: Ui, base: Path, files: Path, vue_nodes: bool, screenshot: Callable[[str], None]
) -> None:
    page, picker = ui.page, Picker(ui, vue_nodes)
    name = f"picker-{'vue' if vue_nodes else 'canvas'}"
    picker.add()
    picker.read()
    # Broken ones are struck out, and what does not suit the model is dim, before the mouse is on them.
    for file in (PAGE, CUT):
        missing = picker.item(file)
        assert "lycoris-missing" in str(missing.get_attribute("class"))
        assert "line-through" in missing.locator(".lycoris-name").evaluate(
            "name => getComputedStyle(name).textDecoration"
        )
    unfit = picker.item(ALICE)
    assert "lycoris-unfit" in str(unfit.get_attribute("class"))
    assert "SD" in str(unfit.locator(".lycoris-bad").get_attribute("title"))
    unfit.hover()
    picker.side.get_by_text("made for SDXL; this model is").wait_for()
    picker.item(PAGE).hover()
    picker.side.locator(".lycoris-problem").wait_for()
    # A favourite of Lora-Manager is one here too, until its star is removed.
    assert picker.heads.first.inner_text().split() == ["▾", "Favourites", "1"]
    screenshot(f"{name}-list")

    # Enter takes the first match, a name that begins with what is typed, whatever the mouse is on.
    page.mouse.move(*middle(picker.items.nth(4)))
    picker.search.press_sequentially("lok")
    box = middle(picker.items.nth(2))
    page.mouse.move(box[0], box[1])
    page.mouse.move(box[0] + 10, box[1] + 2)
    assert picker.shown()[:3] == ["lokr", "lokr_both", "lokr_full"]
    assert picker.active.get_attribute("title") == "lokr.safetensors"
    picker.press("Enter")
    page.locator(".lycoris-picker").wait_for(state="detached")
    assert picker.rows() == ["lokr.safetensors"]

    # A search finds trigger words, tags, titles and families, in the file and in what lies beside it.
    picker.add()
    picker.read()
    for typed, found in {
        "WASH picked": "ink wash",
        "brush": "ink wash",
        "glowing": "neon",
        "b0b": "bob",
        "builder": "bob",
        "sdxl": "alice",
        "tree picked": "ink wash",
    }.items():
        picker.search.fill(typed)
        assert [one.rpartition("/")[2] for one in picker.shown()] == [found], typed
    picker.side.get_by_text("brush by hand").wait_for()
    screenshot(f"{name}-found")
    picker.search.fill("nowhere")
    picker.press("Enter")
    assert picker.shown() == []
    screenshot(f"{name}-none")

    # Ctrl-click and Ctrl-Enter leave the picker open, with a tick and a count.
    picker.search.fill("lokr")
    picker.press("ArrowDown", "Control+Enter", "Control+Enter")
    picker.items.nth(2).click(modifiers=["Control"])
    assert picker.items.locator(".lycoris-tick").all_inner_texts()[:4] == ["", "✓ 2", "✓ 1", ""]
    # What is typed next goes into the search, wherever in the picker the mouse clicked last.
    assert page.evaluate("document.activeElement.type") == "search"
    picker.side.click(position={"x": 5, "y": 5})
    picker.press("_")
    assert picker.search.input_value() == "lokr_"
    picker.press("Backspace")
    page.locator(".lycoris-bottom").get_by_text("3 added").wait_for()
    screenshot(f"{name}-ticks")
    # The rows that were added are seen beside it.
    assert picker.is_beside_rows()
    picker.press("Escape")
    page.locator(".lycoris-picker").wait_for(state="detached")
    both, full = "lokr_both.safetensors", "lokr_full.safetensors"
    assert picker.rows() == ["lokr.safetensors", both, both, full]

    # After the favourites comes what was used last.
    picker.add()
    assert [head.split()[1] for head in picker.heads.all_inner_texts()[:2]] == ["Favourites", "Recently"]
    assert picker.shown()[:4] == ["picked/bob", "lokr_full", "lokr_both", "lokr"]
    picker.press("Home", "Enter")
    assert picker.heads.nth(0).get_attribute("aria-expanded") == "false"
    picker.press("ArrowRight")
    assert picker.heads.nth(0).get_attribute("aria-expanded") == "true"
    picker.press("End")
    last = picker.active.get_attribute("data-key")
    assert last == page.evaluate("[...document.querySelectorAll('.lycoris-item')].at(-1).dataset.key")
    # Left goes to the folder, and closes it.
    picker.press("ArrowLeft", "ArrowLeft")
    assert picker.active.get_attribute("aria-expanded") == "false"
    picker.press("ArrowRight")
    picker.item(NEON).hover()
    picker.item(NEON).locator(".lycoris-star").click()
    picker.search.fill("glow")
    picker.press("Alt+Enter")
    assert picker.active.locator(".lycoris-star").inner_text() == "☆"
    picker.press("Alt+Enter")
    assert picker.rows() == ["lokr.safetensors", both, both, full]
    assert ui.errors == []

    # All of this is kept for the user, also on a new page.
    picker.press("Escape")
    kept = "app.api.getSetting('lycoris.picker').then(kept => kept.favourites[name])"
    page.wait_for_function(f"name => {kept}", arg=NEON)
    page.evaluate("localStorage.clear()")
    ui.reload()
    picker = Picker(ui, vue_nodes, "lora.safetensors")
    page.locator(".lycoris-row .lycoris-file").click()
    picker.items.first.wait_for()
    picker.read()
    assert picker.is_beside_rows()
    assert picker.active.get_attribute("title") == "lora.safetensors"
    assert picker.shown()[:5] == ["picked/bob", "picked/styles/neon", "lokr_full", "lokr_both", "lokr"]
    picker.search.fill("ink wash")
    picker.press("Enter")
    assert picker.rows() == [INK]
    assert ui.errors == []


def middle(found: Locator) -> tuple[float, float]:
    box = found.bounding_box()
    assert box
    return box["x"] + 30, box["y"] + box["height"] / 2


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_pictures_and_clips_are_cards_in_both_palettes(
    ui: Ui, base: Path, files: Path, vue_nodes: bool, screenshot: Callable[[str], None]
) -> None:
    page, picker = ui.page, Picker(ui, vue_nodes)
    name = f"picker-{'vue' if vue_nodes else 'canvas'}"
    picker.add()
    page.get_by_title("Pictures", exact=True).click()
    picker.read()
    picker.search.fill("picked")
    page.wait_for_function("document.querySelectorAll('.lycoris-thumb img').length === 2")
    page.wait_for_function("document.querySelector('.lycoris-thumb video').readyState >= 2")
    # The cards are side by side, and the arrow keys move among them.
    first, second = (picker.items.nth(index).bounding_box() for index in (0, 1))
    assert first and second and first["y"] == second["y"] and second["x"] > first["x"]
    before = picker.active.get_attribute("title")
    picker.press("ArrowRight", "ArrowDown", "ArrowUp", "ArrowLeft")
    assert picker.active.get_attribute("title") == before
    # A clip plays, without sound, on its card and at the side.
    picker.item(BOB).hover()
    for place in (".lycoris-item video", ".lycoris-side video"):
        page.wait_for_function(
            f"(clip => !clip.paused && clip.muted && clip.currentTime > 0)(document.querySelector('{place}'))"
        )
    screenshot(f"{name}-cards")
    picker.search.fill("")
    sizes = {path.stem: path.stat().st_size for path in (base / "models" / "loras").rglob("*.safetensors")}
    for order, best in (("size", max(sizes, key=sizes.__getitem__)), ("date", "cut")):
        page.get_by_label("order").select_option(order)
        assert picker.shown()[0] == best
    page.get_by_label("order").select_option("name")
    page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    page.wait_for_timeout(500)
    picker.search.fill("picked")
    screenshot(f"{name}-cards-light")
    page.get_by_title("List", exact=True).click()
    picker.search.fill("")
    picker.item(ALICE).hover()
    screenshot(f"{name}-list-light")
    # The clip also plays beside a row, and in "About the file".
    picker.search.fill("b0b")
    picker.press("Enter")
    row = page.locator(".lycoris-row")
    row.locator(".lycoris-file").hover()
    page.wait_for_function("document.querySelector('video.lycoris-preview')?.currentTime > 0")
    screenshot(f"{name}-hover-light")
    row.get_by_title("About the file").click()
    page.wait_for_function("document.querySelector('.lycoris-info video')?.currentTime > 0")
    for words in ("Bob the Builder", "b0b man", "person"):
        page.locator(".lycoris-info").get_by_text(words).first.wait_for()
    screenshot(f"{name}-about-light")
    assert ui.errors == []


def test_thousands_of_files_open_at_once_and_no_text_says_where_they_are(
    ui: Ui, base: Path, files: Path, screenshot: Callable[[str], None]
) -> None:
    page, picker = ui.page, Picker(ui, True, "gone.safetensors", PAGE, CUT)
    tensors = load_file(assets() / "loras" / "lora.safetensors")
    layer = next(key for key in tensors if key.endswith("lora_down.weight")).partition(".")[0]
    small = save({key: tensor for key, tensor in tensors.items() if key.startswith(f"{layer}.")})
    for number in range(MANY):
        folder = files / f"many {number % 50}"
        folder.mkdir(exist_ok=True)
        (folder / f"file {number}.safetensors").write_bytes(small)
    first, again = (page.evaluate(OPENED) for _ in range(2))
    picker.add()
    # A longer list takes no longer to open: items out of sight are not made.
    assert 5 < picker.items.count() < 300
    picker.search.fill("file 4999")
    typed = page.evaluate(TYPED)
    print(f"{MANY} files: {first:.0f} ms to open, {again:.0f} ms once more, {typed:.0f} ms for a letter")
    assert picker.active.get_attribute("title") == "picked/many 49/file 4999.safetensors"
    # The end of a long list can be reached, and files are read as they come into view.
    picker.search.fill("")
    picker.press("End")
    picker.active.get_by_text("lora 4").wait_for()
    assert picker.active.get_attribute("title") == "picked/styles/neon.safetensors"
    screenshot("picker-many")
    titles = []
    for file in (PAGE, CUT):
        picker.search.fill(file)
        titles.append(picker.side.inner_text())
        titles += page.evaluate(TITLES)
    picker.press("Escape")
    for row in page.locator(".lycoris-row").all():
        row.hover()
        row.get_by_title("About the file").click()
        page.locator(".lycoris-info .lycoris-problem").wait_for()
        titles += page.evaluate(TITLES)
        picker.press("Escape")
    refused = page.evaluate(
        "app.graphToPrompt().then(made => app.api.queuePrompt(0, made)).catch(error => error.response)"
    )
    titles.append(str(refused))
    for file in (PAGE, CUT):
        # At run time the file is read, and the node fails.
        ui.set("LycorisAdapterRows", "rows", json.dumps({"rows": [{"file": file}]}))
        page.evaluate("app.graph.add(LiteGraph.createNode('PreviewAny'))")
        page.evaluate(
            """() => {
                const find = type => app.graph.nodes.find(node => node.type === type)
                find('LycorisApplyStack').connect(2, find('PreviewAny'), 0)
            }"""
        )
        ended = ui.run()
        assert ended["name"] == "execution_error"
        titles += [str(ended["detail"]["exception_message"]), *page.evaluate(TITLES)]
    said = "\n".join(titles)
    assert "page.safetensors" in said and "cut.safetensors" in said and "gone.safetensors" in said
    places = {str(base), str(base.resolve())}
    assert [text for text in titles if any(place in text for place in places)] == []


OPENED = """async () => {
    const frame = () => new Promise(requestAnimationFrame)
    document.querySelector('.lycoris-foot button').click()
    const start = performance.now()
    while (!document.querySelector('.lycoris-item')) await frame()
    await frame()
    await frame()
    const opened = performance.now() - start
    document.querySelector('.lycoris-picker').dispatchEvent(
        new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}))
    return opened
}"""
TYPED = """() => {
    const search = document.querySelector('.lycoris-picker input')
    const start = performance.now()
    search.value = 'file 499'
    search.dispatchEvent(new Event('input'))
    document.querySelector('.lycoris-results').getBoundingClientRect()
    const took = performance.now() - start
    search.value = 'file 4999'
    search.dispatchEvent(new Event('input'))
    return took
}"""
TITLES = "[document.body.innerText, ...[...document.querySelectorAll('[title]')].map(one => one.title)]"
