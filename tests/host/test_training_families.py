"""The recipes of other trainers that `benchmarks.families` compares with, in two steps of each."""

from __future__ import annotations

from pathlib import Path

import pytest
from hosting import Host

from benchmarks import families
from benchmarks.families import CASES, OURS, Key, ways
from benchmarks.quality import bases

pytestmark = [pytest.mark.host, pytest.mark.soak]


@pytest.mark.parametrize("name", CASES)
def test_a_family_is_trained_with_its_own_settings_and_those_of_its_trainers(
    host: Host, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bases, "FOLDER", tmp_path / "packages")
    family = families.Family(host.nodes, host.pack, name, base_steps=2)
    known = {who: family.row(Key(name, family.hash, who, None, 0), given, 2) for who, given in ways(name)}
    assert len(known) > 1
    for who, row in known.items():
        assert row.test != row.before and row.test < 1.5 * row.before, who
        assert row.numbers and row.settings == family.told(row.key, dict(ways(name))[who])
    # Nothing is left of a training.
    assert family.held_out({}, "test") == family.before


def test_the_table_shows_each_way_at_its_best_rate() -> None:
    def row(who: str, step: int | None, seed: int, loss: float) -> families.Row:
        key = Key("LTX", "a hash", who, step, seed)
        return families.Row(key, 2.0, loss, loss + 0.1, loss + 0.2, 5, {})

    rows = [row(OURS, None, 0, 1.0), row(OURS, -8, 0, 0.5), row(OURS, -8, 1, 0.6), row(OURS, -6, 0, 0.9)]
    text = families.page({one.key: one for one in [*rows, row("LTX-Video-Trainer", None, 0, 1.5)]})
    cells = [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]
    assert cells[0] == ["LTX", "2.000", "usual", "1.100", "0.650 ± 0.071 at 1e-02 (edge)", "0.750 ± 0.071"]
    assert cells[1][:2] == ["LTX-Video-Trainer, configs/ltxv_2b_lora.yaml", "1.600"]
