"""Image file formats that are read, by name; needs neither torch nor Pillow."""

from __future__ import annotations

from pathlib import Path

IMAGE_FORMATS: dict[str, tuple[str, ...]] = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
}
"""Image file formats that are read, by Pillow's names, with their file name suffixes."""


def image_suffixes() -> tuple[str, ...]:
    """Return the file name suffixes of images, in lower case, sorted."""
    return tuple(sorted(suffix.lower() for suffixes in IMAGE_FORMATS.values() for suffix in suffixes))


def looks_like_an_image(path: Path) -> bool:
    """Return whether a path has the suffix of an image and is not hidden, as macOS's "._photo.png" is."""
    return not path.name.startswith(".") and path.suffix.lower() in image_suffixes()
