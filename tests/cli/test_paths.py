"""Which images the arguments of a command line name."""

from __future__ import annotations

import errno
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


def locked(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let a folder be one that may not be listed, also for the administrator."""
    listed = os.scandir

    def scandir(path="."):
        if os.path.abspath(path) == os.path.abspath(folder):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)


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

    def test_arguments_keep_their_order(self):
        assert names("in/2.png", "in/1.png") == ["in/2.png", "in/1.png"]

    @pytest.mark.parametrize("what", ["gone.png", "in/typo"])
    def test_a_path_that_does_not_exist_is_an_error(self, what):
        with pytest.raises(UsageError, match=f"^{what}: no such file or folder$"):
            NamedImages([what])

    def test_a_missing_file_of_a_list_is_listed_and_so_is_a_name_that_no_file_can_have(self):
        lines = ["gone.png", "x" * 300 + ".png", "a\0b.png", "in/1.png"]
        assert names("-", stdin=io.StringIO("\n".join(lines))) == lines

    def test_a_list_on_standard_input_takes_files_folders_and_patterns(self):
        lines = io.StringIO("in/2.png\r\n\nin/old\nin/1*.png\nempty\n")
        found = names("in/1.png", "-", stdin=lines)
        assert found == ["in/1.png", "in/2.png", "in/old/3.JPG", "in/old/deep/4.png", "in/1.png", "in/10.png", "empty"]

    def test_a_list_on_standard_input_is_read_line_by_line(self):
        lines = iter(["in/1.png\n", "in/2.png\n"])
        images = iter(NamedImages(["-"], stdin=lines))
        assert next(images).path == Path("in/1.png")
        assert next(lines) == "in/2.png\n"

    @pytest.mark.parametrize("maps", ["in", ".", "in/maps", "in/old/deep", "in/old/.."])
    def test_pictures_among_the_images_of_a_folder_are_an_error(self, maps):
        with pytest.raises(UsageError, match=r"--maps .* is not apart from the images of in,"):
            NamedImages(["in"], maps=Path(maps))

    @pytest.mark.parametrize(
        ("what", "maps"),
        [("in/1.png", "in"), ("in/*.png", "in"), ("in/**/*.png", "in/maps"), ("in/o*/*.*", "in/old"), ("*", "in/x")],
    )
    def test_pictures_that_a_later_run_would_find_are_an_error(self, what, maps):
        with pytest.raises(UsageError, match="a later run would inspect its pictures"):
            NamedImages([what], maps=Path(maps))

    @pytest.mark.parametrize("what", ["in/*.png", "in/1.png", "in/old"])
    def test_pictures_apart_from_the_images_are_none(self, what):
        assert names(what, maps=Path("in/maps")) == names(what)

    def test_pictures_in_a_list_on_standard_input_are_left_out_and_counted(self):
        images = NamedImages(["-"], maps=Path("in/old"), stdin=io.StringIO("in\nin/old/3.JPG\n"))
        assert len(list(images)) == len(names("in")) - 2
        assert images.n_left_out == 3

    @pytest.mark.parametrize("what", ["in", "in/**/*.png", "in/*/*.png", "in/o*", "*"])
    def test_a_subfolder_that_cannot_be_listed_is_an_error_that_names_it(self, what, monkeypatch):
        locked(monkeypatch, Path("in", "old"))
        with pytest.raises(UsageError, match=r"in.old: the folder cannot be listed \(Permission denied\)"):
            NamedImages([what])

    @pytest.mark.skipif(os.name == "nt", reason="links need rights there")
    def test_links_that_lead_nowhere_are_listed(self):
        Path("in", "broken.png").symlink_to("nowhere.png")
        Path("in", "circle.png").symlink_to("circle.png")
        assert {"in/broken.png", "in/circle.png"} < set(names("in", maps=Path("maps")))
        assert (
            names("in/circle.png", "-", maps=Path("maps"), stdin=io.StringIO("in/circle.png")) == ["in/circle.png"] * 2
        )

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
