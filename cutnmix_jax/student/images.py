"""Pictures of a user: found in folders, read from files of any kind and size, and brought to a network's size."""

import contextlib
import importlib
import os
import stat
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile, ImageOps

from cutnmix_jax.errors import DataError, UsageError, one_line, printable

MOST_PIXELS = 100_000_000
MOST_BYTES = 1 << 29  # of a file; MOST_PIXELS with three bytes each fit in
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST}
Read = np.ndarray | DataError

_LARGE, _ALONE = 16_000_000, threading.Lock()  # a picture with more pixels is decoded alone: it takes up to 2 GB
_CHUNK, _AHEAD = 16, 8  # paths a task, because a future costs as much as a small picture; tasks a thread
_FORMATS = ("Png", "Jpeg", "Mpo", "WebP", "Gif", "Bmp", "Tiff", "Ppm", "Avif")
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 0x0112, 258, 262, 339  # tags of EXIF and of TIFF
_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")

for _name in _FORMATS:  # no other plugin of Pillow is imported, so that none can run
    with contextlib.suppress(ImportError):  # Pillow has AVIF since 11.3
        importlib.import_module(f"PIL.{_name}ImagePlugin")
FORMATS = tuple(name.upper() for name in _FORMATS if name.upper() in Image.OPEN)
SUFFIXES = frozenset(suffix for suffix, name in Image.EXTENSION.items() if name in (*FORMATS, "MPO"))


def find(names: Sequence[str]) -> list[Path]:
    """The files that a user names: files as they are, of folders all that have the suffix of a picture; [N] paths.

    What is hidden in a folder is left out; folders that links lead to are walked once, those around it not at all.
    What stands there under a picture's name without being a file is kept, so that `read` says so.

    Raises:
      UsageError: a name leads to nothing, or to neither a file nor a folder, or a folder holds no picture.
      DataError: a folder cannot be read.
    """
    found: list[Path] = []
    for name in names:
        try:
            mode = os.stat(name).st_mode  # noqa: PTH116 - an empty name is no folder, and `Path("")` is one
        except (OSError, ValueError) as error:
            raise UsageError(f"{printable(name)}: {_why(error)}; name files of pictures, or folders of them") from error
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise UsageError(f"{printable(name)}: {_kind(mode)}; name files of pictures, or folders of them")
        inside = _walk(name) if stat.S_ISDIR(mode) else [Path(name)]
        if not inside:
            raise UsageError(f"{printable(name)}: a folder without pictures ({', '.join(sorted(SUFFIXES))})")
        found += inside
    return found


def _walk(top: str) -> list[Path]:
    found, errors = list[Path](), list[OSError | RecursionError]()
    try:
        seen = {(what.st_dev, what.st_ino) for what in map(Path.stat, Path(top).resolve().parents)}
        for folder, folders, names in os.walk(top, onerror=errors.append, followlinks=True):
            what = Path(folder).stat()
            if (what.st_dev, what.st_ino) in seen:  # links may lead in circles, or double the ways at each step
                folders.clear()
                continue
            seen.add((what.st_dev, what.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            shown = (Path(folder, name) for name in names if not name.startswith("."))
            found += [path for path in shown if path.suffix.lower() in SUFFIXES]
    except (OSError, RecursionError) as failed:
        errors.append(failed)
    for error in errors:
        where, why = getattr(error, "filename", None) or top, getattr(error, "strerror", None) or "nested too deeply"
        raise DataError(f"{printable(where)}: the folder cannot be read ({why})") from error
    return sorted(found)


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
    result = _read(path, size, RESAMPLING[resampling])
    if isinstance(result, DataError):
        raise result
    return result


def _read(path: Path, size: tuple[int, int], method: Image.Resampling) -> Read:
    try:
        return _decoded(path, size, method)
    except Exception as error:  # damaged files make decoders raise errors of all types
        return DataError(f"{printable(str(path))}: {_why(error)}")  # not raised from it: its frames hold the picture


def _decoded(path: Path, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    height, width = size
    with _open(path) as file, _identified(file) as image:
        if image.format in ("JPEG", "MPO") and method != Image.Resampling.NEAREST:  # which takes pixels of the file
            across = (height, width) if _orientation(image) > 4 else (width, height)
            image.draft(None, (2 * across[0], 2 * across[1]))  # a half, a fourth or an eighth, straight from the file
        with _ALONE if image.width * image.height > _LARGE else contextlib.nullcontext():
            image.load()
            orientation, picture = _orientation(image), _rgb(image)
            if 2 <= orientation <= 8:
                picture = picture.transpose(Image.Transpose[_TURNS[orientation - 2]])
            same = picture.size == (width, height)
            return np.array(picture if same else ImageOps.fit(picture, (width, height), method))


def _open(path: Path) -> IO[bytes]:
    """Opens a file; of anything else not even that, because a pipe would be waited for and a device might start."""
    what = path.stat()
    if not stat.S_ISREG(what.st_mode):
        raise DataError(_kind(what.st_mode))
    if what.st_size > MOST_BYTES:
        raise DataError(f"{what.st_size:,} bytes, more than {MOST_BYTES:,}")
    return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123 - opened by number


def _identified(file: IO[bytes]) -> ImageFile.ImageFile:
    """The picture in a file, not yet decoded; `Image.open` does the same, but warns of those that are only large."""
    prefix, _ = (
        file.read(16),
        file.seek(0),
    )  # not `Image.open`, because what silences it would hold for all threads and users of Pillow
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


def stream(
    paths: Sequence[Path], size: tuple[int, int], resampling: str, workers: int | None = None
) -> Iterator[tuple[Path, Read]]:
    """Reads pictures in threads while the caller computes.

    At most 48 files a thread are read ahead of the caller. The threads end with the iterator, also when it is closed;
    by default there is one for each CPU that this process may use, at most 8. All else is as in `read`.

    Yields:
      In the order of `paths`: the path, and what `read` returned ([H, W, 3] uint8) or raised.
    """
    workers, method = workers or min(8, len(os.sched_getaffinity(0))), RESAMPLING[resampling]
    length = max(1, min(_CHUNK, len(paths) // (2 * workers)))  # of few pictures each thread gets some
    stopped = threading.Event()

    def some(start: int) -> list[tuple[Path, Read]]:
        return [(path, _read(path, size, method)) for path in paths[start : start + length] if not stopped.is_set()]

    pool = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
    waiting: deque = deque()
    try:
        for start in range(0, len(paths), length):
            waiting.append(pool.submit(some, start))
            if len(waiting) >= _AHEAD * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def _kind(mode: int) -> str:
    return {"d": "a folder", "p": "a pipe", "s": "a socket"}.get(stat.filemode(mode)[0], "a device") + ", not a file"


def _why(error: BaseException) -> str:
    if isinstance(error, MemoryError | Image.DecompressionBombError):  # of a frame or a tile; else it is known before
        return "too large for the memory"
    known = str(error) if isinstance(error, DataError) else getattr(error, "strerror", None)
    return known or f"damaged or no picture ({printable(one_line(error)[:100] or type(error).__name__)})"
