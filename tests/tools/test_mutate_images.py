"""A short run of the command that opens damaged image files."""

import mutate_images
import numpy as np
from mutate_images import DAMAGES, damaged_files, generated_files, open_all
from PIL import Image

from skpbas.datasets import IMAGE_FORMATS


def test_damaged_files_are_opened_or_refused_by_name(tmp_path):
    outcomes = open_all(generated_files(np.random.default_rng(1)), 200, 1, tmp_path)
    assert outcomes.raw == []
    assert sum(outcomes.counts.values()) == 200
    refused = sum(n for (outcome, _), n in outcomes.counts.items() if outcome == "refused by name")
    assert 20 < refused < 180
    assert list(tmp_path.iterdir()) == []


def test_files_of_every_format_that_is_read_are_damaged():
    suffixes = {suffix for suffix, _ in generated_files(np.random.default_rng(0))}
    Image.init()
    assert {name for name, known in IMAGE_FORMATS.items() if suffixes & set(known)} == set(IMAGE_FORMATS) & set(
        Image.SAVE
    )


def test_the_damage_depends_on_the_seed_alone():
    files = generated_files(np.random.default_rng(0))
    first, again, other = (list(damaged_files(files, 18, seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert [kind for kind, _, _ in first] == 2 * list(DAMAGES)


def test_an_error_of_another_library_is_listed_and_ends_in_status_one(monkeypatch, capsys):
    def broken(*_, **__):
        raise ValueError("tile cannot extend outside image")

    monkeypatch.setattr(mutate_images.ImageSequence, "load", broken)
    assert mutate_images.main(["--count", "1"]) == 1
    assert "#0 (bits): ValueError: tile cannot extend outside image" in capsys.readouterr().out
