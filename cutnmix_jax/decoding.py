"""The one set of rules by which a picture of any kind and size becomes the pixels that a network takes.

What is prepared before training and what is predicted later goes through them alike.
"""

import contextlib
import importlib
import io
import os
import stat
import threading
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile, ImageOps

from cutnmix_jax.errors import DataError, one_line, printable

RULES = 1  # kept with what was prepared by them; another number where a change gives other pixels
MOST_PIXELS = 100_000_000
MOST_BYTES = 1 << 29  # of a file; MOST_PIXELS with three bytes each fit in
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST}
Read = np.ndarray | DataError

_LARGE, _ALONE = 16_000_000, threading.Lock()  # a picture with more pixels is decoded alone: it takes up to 2 GB
_FORMATS = ("Png", "Jpeg", "Mpo", "WebP", "Gif", "Bmp", "Tiff", "Ppm", "Avif")
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 0x0112, 258, 262, 339  # tags of EXIF and of TIFF
_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")

for _name in _FORMATS:  # no other plugin of Pillow is imported, so that none can run
    with contextlib.suppress(ImportError):  # Pillow has AVIF since 11.3
        importlib.import_module(f"PIL.{_name}ImagePlugin")
FORMATS = tuple(name.upper() for name in _FORMATS if name.upper() in Image.OPEN)
SUFFIXES = frozenset(suffix for suffix, name in Image.EXTENSION.items() if name in (*FORMATS, "MPO"))


def threads(most: int) -> int:
    """How many threads decode: one for each CPU that this process may use, up to `most`."""
    return min(most, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def read(path: Path, size: tuple[int, int], resampling: str) -> np.ndarray:
    """The first frame of a picture as a network takes it.

    It is turned as EXIF says and laid on white where it is transparent. One of another size is scaled to cover the
    size, and what stands over is cut off on both sides.

    Args:
      path: of the file.
      size: (H, W).
      resampling: a name in `RESAMPLING`.

    Returns:
      [H, W, 3] uint8; the pixels of the file where it has this size.

    Raises:
      DataError: it cannot be read, whatever the reason; one line that begins with the path.
    """
    result = attempt(path, size, resampling)
    if isinstance(result, DataError):
        raise result
    return result


def attempt(path: Path | str, size: tuple[int, int], resampling: str) -> Read:
    """Like `read`, but returns the error."""
    try:
        return _decoded(path, size, RESAMPLING[resampling])
    except Exception as error:  # damaged files make decoders raise errors of all types
        return DataError(f"{printable(str(path))}: {why_not(error)}")  # not raised from it: its frames hold the picture


def of_bytes(name: str, content: bytes, size: tuple[int, int], resampling: str) -> Read:
    """Like `attempt`, of what a file would hold; `name` is what errors call it."""
    try:
        if len(content) > MOST_BYTES:
            raise DataError(f"{len(content):,} bytes, more than {MOST_BYTES:,}")
        return _pixels(io.BytesIO(content), size, RESAMPLING[resampling])
    except Exception as error:
        return DataError(f"{printable(name)}: {why_not(error)}")


def resized(images: np.ndarray, size: tuple[int, int], resampling: str) -> np.ndarray:
    """Images [N, h, w, 3] uint8, each as `read` would bring it to another size, [N, H, W, 3] uint8."""
    found = np.empty((len(images), *size, 3), np.uint8)
    for row, image in enumerate(images):
        found[row] = np.asarray(_fitted(Image.fromarray(np.ascontiguousarray(image)), size, RESAMPLING[resampling]))
    return found


def _decoded(path: Path | str, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    with _open(path) as file:
        return _pixels(file, size, method)


def _pixels(file: IO[bytes], size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    height, width = size
    with _identified(file) as image:
        if image.format in ("JPEG", "MPO") and method != Image.Resampling.NEAREST:  # which takes pixels of the file
            across = (height, width) if _orientation(image) > 4 else (width, height)
            image.draft(None, (2 * across[0], 2 * across[1]))  # a half, a fourth or an eighth, straight from the file
        with _ALONE if image.width * image.height > _LARGE else contextlib.nullcontext():
            image.load()
            orientation, picture = _orientation(image), _rgb(image)
            if 2 <= orientation <= 8:
                picture = picture.transpose(Image.Transpose[_TURNS[orientation - 2]])
            return np.array(_fitted(picture, size, method))


def _fitted(picture: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    """A picture scaled to cover (H, W), and its middle cut out; as it is where it has that size."""
    width_height = size[1], size[0]
    return picture if picture.size == width_height else ImageOps.fit(picture, width_height, method)


def _open(path: Path | str) -> IO[bytes]:
    """Opens a file; of anything else not even that, because a pipe would be waited for and a device might start."""
    what = os.stat(path)  # noqa: PTH116 - here, as below, to make a `Path` of a name would take a tenth of the time
    if not stat.S_ISREG(what.st_mode):
        raise DataError(kind_of(what.st_mode))
    if what.st_size > MOST_BYTES:
        raise DataError(f"{what.st_size:,} bytes, more than {MOST_BYTES:,}")
    return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123 - opened by number


def _identified(file: IO[bytes]) -> ImageFile.ImageFile:
    """The picture in a file, not yet decoded.

    As `Image.open`, which warns of those that are only large: what silences that would hold for all users of Pillow.
    """
    prefix = file.read(16)
    file.seek(0)
    if not prefix:
        raise DataError("an empty file")
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept and accept(prefix):
            image = factory(file, "")
            if image.width * image.height > MOST_PIXELS:
                raise DataError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")
            return image
    raise DataError(f"not a picture of a known format ({', '.join(FORMATS)})")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a picture with damaged EXIF is one without
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    """A decoded picture of any mode as RGB of 8 bits, on white where it is transparent."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_grey(image)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # told in 16 bits, of which Pillow has kept the upper 8
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    layer, white = image.convert("RGBA"), Image.new("RGB", image.size, "white")
    white.paste(layer, mask=layer.getchannel("A"))
    return white


def _grey(image: Image.Image) -> np.ndarray:
    """[H, W] uint8: grey values of 12 to 32 bits or floating point, scaled and rounded, so that white is 255."""
    tags = getattr(image, "tag_v2", {})
    bits, signed = tags.get(_BITS, (16,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    values, white = np.asarray(image), 2 ** (bits - signed) - 1
    if image.mode == "I" and bits == 32 and not signed:
        values = values.view(np.uint32)  # Pillow has no type for it
    if image.mode == "F" or bits == 32:  # which files hardly use up: what they hold says what is white
        most = float(np.max(values, where=np.isfinite(values), initial=0))
        white = next((top for top in (1, 255, 65535)[image.mode != "F" :] if most <= top), most)
    grey = np.nan_to_num(values.astype(np.float32) * np.float32(255 / white), nan=0, posinf=255, neginf=0)
    grey = np.clip(grey + 0.5, 0, 255.5).astype(np.uint8)
    if image.mode != "F" and tags.get(_PHOTOMETRIC) == 0:
        grey = 255 - grey
    clear = image.info.get("transparency")
    return grey if clear is None else np.where(values == clear, np.uint8(255), grey)


def kind_of(mode: int) -> str:
    """What stands under a name where a file was meant."""
    return {"d": "a folder", "p": "a pipe", "s": "a socket"}.get(stat.filemode(mode)[0], "a device") + ", not a file"


def why_not(error: BaseException) -> str:
    """Why a picture cannot be read, from whatever was raised."""
    if isinstance(error, MemoryError | Image.DecompressionBombError):  # of a frame or a tile; else it is known before
        return "too large for the memory"
    known = str(error) if isinstance(error, DataError) else getattr(error, "strerror", None)
    return known or f"damaged or no picture ({printable(one_line(error)[:100] or type(error).__name__)})"
