"""Which images the arguments of a command line name."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from skpbas._cli.console import UsageError
from skpbas._cli.paths import NamedImages

FILES = ["1.png", "2.png", "10.png", "notes.txt", "._2.png", "old/3.JPG", "old/deep/4.png", "[x].png", ".git/5.png"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    for name in FILES:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*what: str, **options) -> list[str]:
    return [str(image.path).replace(os.sep, "/") for image in NamedImages(what, **options)]


@pytest.mark.usefixtures("folder")
class TestNamedImages:
    def test_a_folder_gives_its_images_and_those_below_in_natural_order(self):
        found = names("in")
        assert found == ["in/1.png", "in/2.png", "in/10.png", "in/[x].png", "in/old/3.JPG", "in/old/deep/4.png"]

    def test_a_pattern_is_expanded_without_a_shell(self):
        assert names("in/*.png") == ["in/1.png", "in/2.png", "in/10.png", "in/[x].png"]
        assert names("in/?.png") == ["in/1.png", "in/2.png"]
        assert names("in/**/*.png") == [*names("in/*.png"), "in/old/deep/4.png"]

    def test_a_pattern_that_matches_other_files_skips_them_unless_it_names_their_suffix(self):
        assert "in/notes.txt" not in names("in/*")
        assert names("in/*.txt") == ["in/notes.txt"]

    def test_a_pattern_that_matches_a_folder_gives_its_images_once(self):
        assert names("in/o*") == ["in/old/3.JPG", "in/old/deep/4.png"]
        assert names("in/**") == names("in")

    def test_a_file_whose_name_looks_like_a_pattern_is_that_file(self):
        assert names("in/[x].png") == ["in/[x].png"]

    def test_arguments_keep_their_order_and_a_missing_file_is_listed(self):
        assert names("in/2.png", "gone.png", "in/1.png") == ["in/2.png", "gone.png", "in/1.png"]

    def test_a_list_on_standard_input_takes_files_folders_and_patterns(self):
        lines = io.StringIO("in/2.png\r\n\nin/old\nin/1*.png\nempty\n")
        found = names("in/1.png", "-", stdin=lines)
        assert found == ["in/1.png", "in/2.png", "in/old/3.JPG", "in/old/deep/4.png", "in/1.png", "in/10.png", "empty"]

    def test_a_list_on_standard_input_is_read_line_by_line(self):
        lines = iter(["in/1.png\n", "in/2.png\n"])
        images = iter(NamedImages(["-"], stdin=lines))
        assert next(images).path == Path("in/1.png")
        assert next(lines) == "in/2.png\n"

    def test_images_below_the_folder_of_the_output_are_left_out(self):
        assert "in/old/3.JPG" not in names("in", without=Path("in/old"))
        assert len(names("in", without=Path("in/old"))) == len(names("in")) - 2

    @pytest.mark.parametrize("what", ["empty", "in/*.bmp", "nowhere/*.png"])
    def test_what_names_no_image_is_an_error_that_names_it(self, what):
        with pytest.raises(UsageError) as error:
            NamedImages([what])
        assert str(error.value).startswith(f"{what}: no image file")

    def test_standard_input_cannot_be_given_twice(self):
        with pytest.raises(UsageError, match="once only"):
            NamedImages(["-", "-"])

    def test_paths_below_what_was_given_keep_their_subfolders(self):
        of_folder = {str(image.path): str(image.below) for image in NamedImages(["in"])}
        assert of_folder[os.path.join("in", "old", "3.JPG")] == os.path.join("old", "3.JPG")
        of_pattern = [str(image.below) for image in NamedImages(["in/*/3.*"])]
        assert of_pattern == [os.path.join("old", "3.JPG")]
