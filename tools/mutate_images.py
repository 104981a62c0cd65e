"""Damage image files in many ways and open them as the package does: only errors that name the file may come out.

    python tools/mutate_images.py --count 10000 --seed 0 [--real FOLDER]

Files of every format that is read are generated, in several modes each; ``--real`` adds those of a folder, with its
subfolders. Each is damaged by the seed alone: bits flipped, bytes cut off, inserted or repeated, the header edited,
lengths set to extremes, two files joined, or content put under the name of another format. The command counts what came
of them, lists every error that is not the package's or does not name its file, and then ends with status 1.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from skpbas._inputs.formats import image_suffixes, looks_like_an_image
from skpbas._inputs.images import ImageSequence, check_images, image_shape
from skpbas.errors import InvalidImageError

_SIDE = 48
_LARGEST_REAL = 2**21  # bytes
_EXTREMES = (b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\xff\xff", b"\x80\x00\x00\x00")


@dataclass
class Outcomes:
    """What came of the damaged files.

    Attributes
    ----------
    counts : Counter
        By outcome and kind of damage.
    raw : list of str
        Errors that are not the package's, or do not name the file.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    raw: list[str] = field(default_factory=list)


# Files ----------------------------------------------------------------------------------------------------


def generated_files(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """Return the suffix and content of small files of all formats and modes."""
    smooth = np.cumsum(rng.normal(0, 6, (_SIDE, _SIDE, 3)), axis=1) + 128
    color = Image.fromarray(np.uint8(np.clip(smooth, 0, 255)))
    gray, alpha = color.convert("L"), Image.fromarray(rng.integers(0, 256, (_SIDE, _SIDE), dtype=np.uint8))
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    clear = color.copy()
    clear.putalpha(alpha)
    gray_alpha = Image.merge("LA", (gray, alpha))
    palette = color.quantize(16)
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "part 7, camera 2", zip=True)
    more = {"save_all": True}
    wanted = [
        *((".png", image, {}) for image in (color, gray, deep, clear, gray_alpha, palette, color.convert("1"))),
        (".png", color, {"pnginfo": text, "exif": exif}),
        (".png", palette, {"transparency": bytes(range(0, 256, 16))}),
        (".png", color, more),
        *((".jpg", image, {}) for image in (color, gray, color.convert("CMYK"))),
        (".jpg", color, {"progressive": True, "exif": exif}),
        (".mpo", color, more),
        *((".bmp", image, {}) for image in (color, gray, palette, color.convert("1"))),
        *((".gif", image, {}) for image in (color, gray)),
        (".gif", color, more),
        *((".ppm", image, {}) for image in (color, gray, color.convert("1"))),
        *((".tif", color, {"compression": method}) for method in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")),
        *((".tif", image, {"compression": "packbits"}) for image in (gray, clear, color.convert("1"))),
        *((".tif", image, {}) for image in (deep, color.convert("CMYK"), Image.fromarray(np.float32(smooth[..., 0])))),
        (".tif", color, more),
        (".webp", color, {}),
        (".webp", clear, {"lossless": True}),
        (".webp", color, more),
        *((".jp2", image, {}) for image in (color, gray, clear)),
    ]
    return [file for suffix, image, options in wanted if (file := _written(suffix, image, options))]


def _written(suffix: str, image: Image.Image, options: dict[str, object]) -> tuple[str, bytes] | None:
    """Return a file, or None where this build of Pillow does not write its format."""
    content = io.BytesIO()
    extensions = Image.registered_extensions()
    if suffix not in extensions:
        return None
    if "save_all" in options:
        options = {**options, "append_images": [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]}
    try:
        image.copy().save(content, format=extensions[suffix], **options)  # a JPEG's settings would stay with an image
    except (KeyError, OSError):  # built without the format's library
        return None
    return suffix, content.getvalue()


def real_files(folder: Path) -> list[tuple[str, bytes]]:
    """Return the suffix and content of the image files in a folder and its subfolders, up to 2 MiB each."""
    paths = sorted(path for path in folder.rglob("*") if looks_like_an_image(path) and path.is_file())
    return [(path.suffix.lower(), path.read_bytes()) for path in paths if path.stat().st_size <= _LARGEST_REAL]


# Damage ---------------------------------------------------------------------------------------------------

Damage = Callable[[np.random.Generator, bytearray, bytes], bytearray]


def _flip(rng: np.random.Generator, content: bytearray, _: bytes, until: int | None = None) -> bytearray:
    for position in rng.integers(0, min(len(content), until or len(content)), rng.choice([1, 2, 8, 64])):
        content[position] ^= 1 << int(rng.integers(8))
    return content


def _flip_header(rng: np.random.Generator, content: bytearray, other: bytes) -> bytearray:
    return _flip(rng, content, other, until=128)


def _extreme(rng: np.random.Generator, content: bytearray, _: bytes) -> bytearray:
    start = int(rng.integers(0, min(len(content), 256)))
    value = _EXTREMES[rng.integers(len(_EXTREMES))]
    content[start : start + 4] = value if rng.random() < 0.5 else value[::-1]
    return content


def _cut(rng: np.random.Generator, content: bytearray, _: bytes) -> bytearray:
    return content[: int(rng.integers(0, len(content)))]


def _remove(rng: np.random.Generator, content: bytearray, _: bytes) -> bytearray:
    start = int(rng.integers(0, len(content)))
    del content[start : start + int(rng.integers(1, 64))]
    return content


def _insert(rng: np.random.Generator, content: bytearray, _: bytes) -> bytearray:
    start = int(rng.integers(0, len(content)))
    content[start:start] = rng.bytes(int(rng.integers(1, 64)))
    return content


def _repeat(rng: np.random.Generator, content: bytearray, _: bytes) -> bytearray:
    start = int(rng.integers(0, len(content)))
    part = content[start : start + int(rng.integers(1, 512))]
    content[start:start] = part * int(rng.integers(1, 20))
    return content


def _join(rng: np.random.Generator, content: bytearray, other: bytes) -> bytearray:
    return content[: int(rng.integers(0, len(content)))] + other[int(rng.integers(0, len(other))) :]


def _swap_names(rng: np.random.Generator, content: bytearray, other: bytes) -> bytearray:
    return bytearray(other) if rng.random() < 0.5 else _flip(rng, bytearray(other), b"")


DAMAGES: dict[str, Damage] = {
    "bits": _flip,
    "bits of the header": _flip_header,
    "extreme numbers": _extreme,
    "cut off": _cut,
    "bytes removed": _remove,
    "bytes inserted": _insert,
    "part repeated": _repeat,
    "two files joined": _join,
    "other format's name": _swap_names,
}


def damaged_files(files: Sequence[tuple[str, bytes]], count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield kind of damage, suffix and content of ``count`` damaged files; each depends on the seed and its number."""
    kinds = list(DAMAGES)
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        suffix, content = files[rng.integers(len(files))]
        kind = kinds[number % len(kinds)]
        yield kind, suffix, bytes(DAMAGES[kind](rng, bytearray(content), files[rng.integers(len(files))][1]))


# Opening --------------------------------------------------------------------------------------------------


def open_all(files: Sequence[tuple[str, bytes]], count: int, seed: int, folder: Path) -> Outcomes:
    """Open ``count`` damaged files as the package does, one after the other in ``folder``, and count what comes out."""
    outcomes = Outcomes()
    for number, (kind, suffix, content) in enumerate(damaged_files(files, count, seed)):
        path = folder / f"damaged{number}{suffix}"
        path.write_bytes(content)
        for resize in ("stretch", "crop"):
            outcome = _opened(path, resize, outcomes.raw, f"#{number} ({kind})")
        outcomes.counts[outcome, kind] += 1
        path.unlink()
    return outcomes


def _opened(path: Path, resize: str, raw: list[str], number: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow remarks on damaged metadata
            images = ImageSequence(check_images([path]), image_size=(32, 32), resize=resize, smallest=16)
            view, _ = images.load(0)
            image_shape(path, "X[0]")
    except InvalidImageError as error:
        if str(path) not in str(error):
            raw.append(f"{number}: the error does not name the file: {error}")
        return "refused by name"
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        raw.append(f"{number}: {type(error).__name__}: {error}")
        return "other error"
    if tuple(view.shape) != (3, 32, 32):
        raw.append(f"{number}: a view of shape {tuple(view.shape)}")
    return "opened"


def table(outcomes: Outcomes) -> list[str]:
    """Return the lines of the counts, by kind of damage."""
    names = ["opened", "refused by name", "other error"]
    lines = [f"{'damage':22}" + "".join(f"{name:>18}" for name in names)]
    for kind in DAMAGES:
        lines.append(f"{kind:22}" + "".join(f"{outcomes.counts[name, kind]:18}" for name in names))
    totals = [sum(n for (name, _), n in outcomes.counts.items() if name == column) for column in names]
    return [*lines, f"{'sum':22}" + "".join(f"{total:18}" for total in totals)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description="Open damaged image files; only the package's errors may come out.")
    parser.add_argument("--count", type=int, default=10_000, help="damaged files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", type=Path, help="folder whose image files are damaged too")
    options = parser.parse_args(arguments)
    files = generated_files(np.random.default_rng(options.seed))
    n_generated = len(files)
    if options.real is not None:
        found = real_files(options.real)
        if not found:
            parser.error(f"--real {options.real}: no image files ({', '.join(image_suffixes())})")
        files += [found[i] for i in np.linspace(0, len(found) - 1, n_generated).astype(int)]  # as many as generated
    print(f"{options.count} damaged files, from {n_generated} generated and {len(files) - n_generated} real ones")
    with tempfile.TemporaryDirectory() as folder:
        outcomes = open_all(files, options.count, options.seed, Path(folder))
    print("\n".join([*table(outcomes), *outcomes.raw]))
    return 1 if outcomes.raw else 0


if __name__ == "__main__":
    sys.exit(main())
