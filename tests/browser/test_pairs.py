"""Rows of pairs, and of files for picture and sound, in both renderers of the front end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from tests.harness.list_of_rows import start

if TYPE_CHECKING:
    from tests.harness.page import Ui

pytestmark = pytest.mark.browser

HIGH, LOW = "pairs/InkHighNoise.safetensors", "pairs/InkLowNoise.safetensors"
LONG, SHORT = "pairs/rain_high_e20.safetensors", "pairs/rain_low_e10.safetensors"
SOUND = "pairs/waves.safetensors"


def tensors(*layers: str) -> dict[str, torch.Tensor]:
    return {
        f"diffusion_model.{layer}.{factor}.weight": torch.ones(shape)
        for layer in layers
        for factor, shape in (("lora_A", (2, 8)), ("lora_B", (8, 2)))
    }


@pytest.fixture
def files(loras: Path) -> Path:
    """Two pairs for Wan, and a file for picture and sound."""
    (loras / HIGH).parent.mkdir()
    for file in (HIGH, LOW, LONG, SHORT):
        save_file(tensors("blocks.0.self_attn.q"), loras / file)
    save_file(
        tensors("transformer_blocks.0.attn1.to_q", "transformer_blocks.0.audio_attn1.to_q"), loras / SOUND
    )
    return loras


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_a_pair_is_one_row(ui: Ui, files: Path, vue_nodes: bool, screenshot: Callable[[str], None]) -> None:
    page, rows = ui.page, start(ui, vue_nodes)
    # The partner comes with either of the two, and has its row then.
    rows.add(LOW)
    rows.wait([HIGH])
    pair = {"on": True, "file": HIGH, "strength_model": 1, "low_noise": LOW}
    assert rows.said() == [[pair]]
    rows.line(0).get_by_text("high + low").wait_for()
    rows.add(LOW)
    rows.add(HIGH)
    rows.wait([HIGH])
    assert rows.said() == [[pair]]
    # Where the names leave doubts, a click takes it.
    rows.add(SHORT)
    rows.wait([HIGH, SHORT])
    rows.click(rows.line(1).get_by_role("button", name="+ high noise?"))
    rows.wait([HIGH, LONG])
    assert rows.said()[0][1] == {"on": True, "file": LONG, "strength_model": 1, "low_noise": SHORT}
    screenshot(f"pairs-{'vue' if vue_nodes else 'canvas'}")
    rows.menu(0, "Split into two rows")
    rows.wait([HIGH, LOW, LONG])
    rows.menu(0, "File for low noise…")
    rows.click(page.locator(".lycoris-picker").get_by_title(SHORT, exact=True))
    page.wait_for_function(
        "() => document.querySelectorAll('.lycoris-row')[0].textContent.includes('high + low')"
    )
    assert rows.said()[0][0] == {**pair, "low_noise": SHORT}
    # A file for low noise that is for another model is told on the row.
    rows.menu(0, "File for low noise…")
    rows.click(page.locator(".lycoris-picker").get_by_title(SOUND, exact=True))
    warned = rows.line(0).locator(".lycoris-bad:visible")
    warned.and_(page.get_by_title(f"{SOUND} is made for")).wait_for()
    rows.menu(0, "File for low noise…")
    rows.click(page.locator(".lycoris-picker").get_by_title(SHORT, exact=True))
    warned.wait_for(state="detached")
    # The row of the other file alone goes where its partner takes it in.
    rows.menu(0, "Split into two rows")
    rows.wait([HIGH, SHORT, LOW, LONG])
    rows.click(rows.line(0).get_by_role("button", name="+ low noise"))
    rows.wait([HIGH, SHORT, LONG])
    assert rows.said()[0][0] == pair
    # A row whose file is replaced by one of a pair that is there stays.
    rows.click(rows.line(1).locator(".lycoris-file"))
    rows.click(page.locator(".lycoris-picker").get_by_title(LOW, exact=True))
    rows.wait([HIGH, LOW, LONG])
    rows.line(1).get_by_text("x2").wait_for()
    # A file that is gone is told on the row, and one that is elsewhere is offered there, with its partner.
    (files / SHORT).unlink()
    moved = {file: f"moved/{file}" for file in (HIGH, LOW)}
    (files / "moved" / "pairs").mkdir(parents=True)
    for file, there in moved.items():
        (files / file).rename(files / there)
    page.keyboard.press("r")
    rows.line(2).get_by_text("!", exact=True).wait_for()
    rows.click(rows.line(0).get_by_title(f"Take {moved[HIGH]}"))
    rows.wait([moved[HIGH], LOW, LONG])
    assert rows.said()[0][0] == {**pair, "file": moved[HIGH], "low_noise": moved[LOW]}
    # Of two files the missing one is replaced alone.
    (files / moved[LOW]).rename(files / LOW)
    page.keyboard.press("r")
    rows.click(rows.line(0).get_by_title(f"Take {LOW}"))
    page.wait_for_function("() => !document.querySelector('.lycoris-row').matches('.lycoris-lost')")
    assert rows.said()[0][0] == {**pair, "file": moved[HIGH]}
    assert ui.errors == []


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_picture_and_sound_have_factors_of_their_own(
    ui: Ui, files: Path, vue_nodes: bool, screenshot: Callable[[str], None]
) -> None:
    page, rows = ui.page, start(ui, vue_nodes, SOUND, HIGH)
    sound = rows.line(0).get_by_label("factor for the sound")
    rows.click(sound)
    page.keyboard.type("0.5")
    page.keyboard.press("Enter")
    page.wait_for_function("() => !document.activeElement?.classList.contains('lycoris-number')")
    assert rows.said()[0][0] == {"file": SOUND, "audio": 0.5}
    assert sound.input_value() == "0.50"
    assert rows.line(0).get_by_label("factor for the picture").input_value() == "1.00"
    screenshot(f"sound-{'vue' if vue_nodes else 'canvas'}")
    # What is no strength is not taken: the value before comes back, and the row says so.
    for typed in ("1e400", "1000"):
        rows.click(sound)
        page.keyboard.type(typed)
        page.keyboard.press("Enter")
        page.get_by_text(f"{typed} is no number from").wait_for()
        assert sound.input_value() == "0.50"
        assert rows.said()[0][0] == {"file": SOUND, "audio": 0.5}
    rows.menu(0, "Picture off")
    rows.menu(0, "Sound off")
    off = {"file": SOUND, "audio": 0}
    assert rows.said()[0][0] == {**off, "video": 0}
    rows.menu(0, "Picture on")
    assert rows.said()[0][0] == off
    # Of files without sound there is nothing to see.
    assert not rows.line(1).get_by_label("factor for the sound").is_visible()
    assert ui.errors == []
