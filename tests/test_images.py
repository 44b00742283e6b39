"""How a user's pictures are found and read: every mode by hand, and no file that stops the others."""

import errno
import io
import itertools
import os
import socket
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageFile

from cutnmix_jax import decoding, images
from cutnmix_jax.errors import DataError, UsageError
from cutnmix_jax.student import sheet

SIZE = (4, 6)  # (H, W)
NOISE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


@pytest.fixture(autouse=True)
def nothing_else_changes():
    """What holds for all users of Pillow is as before, no thread is left, and nothing has warned of large pictures.

    Pillow warns of damaged tags in pictures that it reads. Before Python 3.14 nothing can silence that for one thread.
    """
    names = ("MAX_IMAGE_PIXELS", "WARN_POSSIBLE_FORMATS")
    before = [getattr(Image, name) for name in names], ImageFile.LOAD_TRUNCATED_IMAGES, list(Image.OPEN), Image.ID[:]
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        yield
        assert warnings.filters == filters
        assert not [one for one in shown if one.category is not UserWarning or "PIL" not in one.filename]
    assert before == (
        [getattr(Image, name) for name in names], ImageFile.LOAD_TRUNCATED_IMAGES, list(Image.OPEN), Image.ID
    )  # fmt: skip
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pictures")]


def bytes_of(picture, kind="PNG", **options):
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **options)
    return file.getvalue()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, depth, colour, content, *chunks):
    """A PNG by hand, of rows that each begin with the filter 0."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def tiff(bits, sample_format, photometric, content, width=2, order="<"):
    """A TIFF by hand, of one row."""
    start = 8 + 2 + 12 * 9 + 4
    tags = ((256, 4, width), (257, 4, 1), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, start),
            (277, 3, 1), (279, 4, len(content)), (339, 3, sample_format))  # fmt: skip
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags))
    for tag, kind, value in tags:
        head += struct.pack(
            f"{order}HHI{'I' if kind == 4 else 'HH'}", tag, kind, 1, *((value,) if kind == 4 else (value, 0))
        )
    return head + bytes(4) + content


def read(tmp_path, content, size=SIZE, resampling="bicubic", name="x.png"):
    path = tmp_path / name
    path.write_bytes(content)
    return decoding.read(path, size, resampling)


# Modes: what is in the file, and the pixels of its only row by hand.

ROW = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
PALETTE = chunk(b"PLTE", bytes([255, 0, 0, 0, 0, 255]))
MODES = {
    "1": (png(2, 1, 1, 0, b"\0\x40"), [(0, 0, 0), (255, 255, 255)]),
    "L": (png(2, 1, 8, 0, b"\0\x07\xfe"), [(7, 7, 7), (254, 254, 254)]),
    "L and a clear value": (png(2, 1, 8, 0, b"\0\x07\xfe", chunk(b"tRNS", b"\0\7")), [(255,) * 3, (254,) * 3]),
    "LA": (png(2, 1, 8, 4, b"\0\x64\xff\x64\x00"), [(100,) * 3, (255,) * 3]),
    "LA, half": (png(2, 1, 8, 4, b"\0\x00\x80\x64\x33"), [(127,) * 3, (224,) * 3]),  # 255 - 128; 100/5 + 255*4/5
    "P": (png(2, 1, 8, 3, b"\0\1\0", PALETTE), [(0, 0, 255), (255, 0, 0)]),
    "P, one clear": (png(2, 1, 8, 3, b"\0\1\0", PALETTE, chunk(b"tRNS", b"\0")), [(0, 0, 255), (255, 255, 255)]),
    "P, alphas": (png(2, 1, 8, 3, b"\0\1\0", PALETTE, chunk(b"tRNS", b"\x33\x66")), [(153, 153, 255), (255, 204, 204)]),
    "RGB": (png(2, 1, 8, 2, b"\0\1\2\3\4\5\6"), [(1, 2, 3), (4, 5, 6)]),
    "RGB and a clear colour": (
        png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", chunk(b"tRNS", b"\0\1\0\2\0\3")), [(255, 255, 255), (4, 5, 6)],
    ),
    "RGBA": (png(2, 1, 8, 6, b"\0\1\2\3\xff\4\5\6\0"), [(1, 2, 3), (255, 255, 255)]),
    "RGBA, half": (png(2, 1, 8, 6, b"\0\xff\0\0\x33\0\0\xff\x66"), [(255, 204, 204), (153, 153, 255)]),
    "RGB of 16 bits": (png(2, 1, 16, 2, b"\0" + b"\xff\xff\0\0\x80\x80" * 2), [(255, 0, 128)] * 2),
    "RGB of 16 bits and a clear colour": (
        png(2, 1, 16, 2, b"\0\xff\x11\0\0\x80\x22\0\0\0\0\0\0", chunk(b"tRNS", b"\xff\x11\0\0\x80\x22")),
        [(255, 255, 255), (0, 0, 0)],
    ),
    "grey of 16 bits": (png(2, 1, 16, 0, b"\0\x80\x80\x01\x01"), [(128,) * 3, (1,) * 3]),
    "grey of 16 bits and a clear value": (
        png(2, 1, 16, 0, b"\0\x80\x80\x01\x02", chunk(b"tRNS", b"\x80\x80")), [(255,) * 3, (1,) * 3],
    ),
    "grey of 16 bits, rounded": (png(2, 1, 16, 0, struct.pack(">BHH", 0, 200, 65400)), [(1,) * 3, (254,) * 3]),
    "I;16": (tiff(16, 1, 1, struct.pack("<2H", 257 * 30, 65535)), [(30,) * 3, (255,) * 3]),
    "I;16B": (tiff(16, 1, 1, struct.pack(">2H", 257 * 30, 65535), order=">"), [(30,) * 3, (255,) * 3]),
    "I;16, white is 0": (tiff(16, 1, 0, struct.pack("<2H", 257 * 30, 65535)), [(225,) * 3, (0,) * 3]),
    "I;16, dark": (tiff(16, 1, 1, struct.pack("<2H", 0, 257)), [(0,) * 3, (1,) * 3]),
    "12 bits": (tiff(12, 1, 1, b"\xff\xf0\x00"), [(255,) * 3, (0,) * 3]),
    "I of 16 bits, signed": (tiff(16, 2, 1, struct.pack("<2h", -5, 32767)), [(0,) * 3, (255,) * 3]),
    "I up to 255": (tiff(32, 2, 1, struct.pack("<2i", 255, 100)), [(255,) * 3, (100,) * 3]),
    "I up to 65535": (tiff(32, 2, 1, struct.pack("<2i", 65535, 257)), [(255,) * 3, (1,) * 3]),
    "I unsigned": (tiff(32, 1, 1, struct.pack("<2I", 2**32 - 1, 2**31)), [(255,) * 3, (128,) * 3]),
    "I all 0": (tiff(32, 2, 1, bytes(8)), [(0,) * 3] * 2),
    "F up to 1": (tiff(32, 3, 1, struct.pack("<2f", 0.2, 1)), [(51,) * 3, (255,) * 3]),
    "F up to 255": (tiff(32, 3, 1, struct.pack("<2f", 51, 255)), [(51,) * 3, (255,) * 3]),
    "F of no numbers": (tiff(32, 3, 1, struct.pack("<2f", np.nan, np.inf)), [(0,) * 3, (255,) * 3]),
    "PGM of 16 bits": (b"P5 2 1 65535 \x80\x80\xff\xff", [(128,) * 3, (255,) * 3]),
    "PGM of 10 bits": (b"P2 2 1 1023 0 1023", [(0,) * 3, (255,) * 3]),
    "PBM": (b"P1 2 1 0 1", [(255,) * 3, (0,) * 3]),
    "PFM": (b"Pf 2 1 -1.0\n" + struct.pack("<2f", 0.2, 1), [(51,) * 3, (255,) * 3]),
    "CMYK": (bytes_of(Image.new("CMYK", (2, 1), (0, 255, 255, 0)), "TIFF"), [(255, 0, 0)] * 2),
    "BMP": (bytes_of(ROW, "BMP"), [(255, 0, 0), (0, 0, 255)]),
    "GIF": (bytes_of(ROW, "GIF"), [(255, 0, 0), (0, 0, 255)]),
    "WebP": (bytes_of(ROW, "WEBP", lossless=True), [(255, 0, 0), (0, 0, 255)]),
    "first frame": (
        bytes_of(ROW, "GIF", save_all=True, append_images=[Image.new("RGB", (2, 1), "lime")]),
        [(255, 0, 0), (0, 0, 255)],
    ),
    "first of a TIFF": (
        bytes_of(ROW, "TIFF", save_all=True, append_images=[Image.new("RGB", (2, 1), "lime")]),
        [(255, 0, 0), (0, 0, 255)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODES)
def test_modes(name, tmp_path):
    content, row = MODES[name]
    got = read(tmp_path, content, (1, 2))
    assert got.dtype == np.uint8 and got.shape == (1, 2, 3) and got.tolist() == [[list(pixel) for pixel in row]]


@pytest.mark.parametrize(("mode", "colour"), [("CMYK", (0, 255, 255, 0)), ("YCbCr", (76, 85, 255)), ("L", 200)])
def test_modes_of_jpeg(mode, colour, tmp_path):
    wanted = 200 if mode == "L" else (255, 0, 0)
    content = bytes_of(Image.new(mode, (16, 16), colour), "JPEG", quality=100)
    assert np.abs(read(tmp_path, content, (16, 16)).astype(int) - wanted).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
@pytest.mark.parametrize("resampling", ["bicubic", "nearest"])
def test_the_right_size_is_left_as_it_is(kind, resampling, tmp_path):
    content = bytes_of(NOISE, kind, **({"lossless": True} if kind == "WEBP" else {}))
    got = read(tmp_path, content, SIZE, resampling)
    np.testing.assert_array_equal(got, NOISE)
    got[0] = 1  # it is the caller's own


def test_a_picture_is_scaled_to_cover_and_cut_in_the_middle(tmp_path):
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, :4], wide[:, 4:8], wide[:, 8:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    high = wide.transpose(1, 0, 2)
    for picture in (wide, high):
        for resampling in ("bicubic", "nearest"):
            content = bytes_of(np.ascontiguousarray(picture))
            np.testing.assert_array_equal(read(tmp_path, content, (4, 4), resampling), np.tile((0, 255, 0), (4, 4, 1)))
    steps = np.repeat(np.repeat(NOISE, 3, 0), 3, 1)
    np.testing.assert_array_equal(read(tmp_path, bytes_of(steps), SIZE, "nearest"), NOISE)
    assert np.abs(read(tmp_path, bytes_of(steps), SIZE).astype(int) - NOISE).mean() > 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_exif(kind, tmp_path):
    if kind not in decoding.FORMATS:
        pytest.skip("this Pillow lacks it")
    upright = np.zeros((32, 64, 3), np.uint8)
    upright[:16, :32], upright[:16, 32:], upright[16:, 32:] = 80, 160, 240
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
              6: np.rot90(upright), 7: np.rot90(upright.transpose(1, 0, 2), 2), 8: np.rot90(upright, -1)}  # fmt: skip
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = bytes_of(np.ascontiguousarray(pixels), kind, exif=exif, quality=95)
        for size, wanted in (((32, 64), upright), ((2, 4), upright[::16, ::16])):  # without and with `draft`
            got = read(tmp_path, content, size).astype(int)
            assert np.abs(got - wanted).mean() < 15, orientation


def test_damaged_exif_is_none(tmp_path):
    content = bytes_of(NOISE, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(read(tmp_path, content), NOISE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as PYTHONWARNINGS=error does
        np.testing.assert_array_equal(read(tmp_path, content), NOISE)


def test_a_large_jpeg_is_decoded_at_least_at_twice_the_size(tmp_path, monkeypatch):
    y, x = np.mgrid[:400, :600]
    picture = np.stack([127 + 100 * np.sin(x / 40), 127 + 100 * np.cos(y / 30), x / 3], -1).astype(np.uint8)
    sizes = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: (sizes.append(self.size), load(self))[1])
    content = bytes_of(picture, "JPEG", quality=95)
    got = read(tmp_path, content, (40, 60)).astype(int)
    exact = read(tmp_path, bytes_of(picture), (40, 60)).astype(int)
    read(tmp_path, content, (40, 60), "nearest")
    read(tmp_path, content, (201, 301))
    assert [size for size, _ in itertools.groupby(sizes)] == [(150, 100), (600, 400)]
    exif = Image.Exif()
    exif[0x0112] = 6
    sizes.clear()
    assert read(tmp_path, bytes_of(picture, "JPEG", exif=exif), (60, 30)).shape == (60, 30, 3)  # which needs 120 x 80
    assert sizes[0] == (150, 100)
    assert np.abs(got - exact).mean() < 2


# Files that are no pictures, and folders.

PNG, JPEG, GIF, TIFF, BMP = (bytes_of(NOISE, kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP"))
WEBP = bytes_of(NOISE, "WEBP", lossless=True)
HUGE = 10_001
BAD = {
    "empty": b"",
    "text": b"this is no picture\n",
    "zeros": bytes(5000),
    "noise": np.random.default_rng(1).bytes(5000),
    "html": b"<html><body>404</body></html>",
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "pdf": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
    "ico": bytes_of(Image.new("RGB", (16, 16)), "ICO"),
    "tga": bytes_of(NOISE, "TGA"),
    "png, half": PNG[: len(PNG) // 2],
    "png, without its end": PNG[:-30],
    "png, head only": PNG[:33],
    "png, signature only": PNG[:8],
    "png, a byte changed": PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:],
    "png, a bad checksum": PNG[:29] + bytes(4) + PNG[33:],
    "png, width 0": png(0, 4, 8, 2, b"\0"),
    "png, no data": png(4, 4, 8, 2, b""),
    "png, strange depth": png(4, 4, 5, 2, b"\0" * 99),
    "png, huge": png(HUGE, HUGE, 8, 2, b""),
    "png, 4 billion wide": png(2**32 - 1, 2**32 - 1, 8, 2, b""),
    "png, much text": png(4, 4, 8, 2, b"\0", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200 << 20), 1))),
    "png, a long chunk": PNG[:33] + struct.pack(">I", 2**31 - 1) + b"tEXt" + b"x" * 99,
    "jpeg, half": JPEG[: len(JPEG) // 2],
    "jpeg, without its end": JPEG[:-40],
    "jpeg, start only": JPEG[:4],
    "jpeg, huge": JPEG.replace(b"\xff\xc0\0\x11\x08\0\4\0\6", b"\xff\xc0\0\x11\x08\xff\xff\xff\xff"),
    "gif, half": GIF[: len(GIF) // 2],
    "gif, head only": GIF[:13],
    "gif, huge": GIF[:6] + b"\xff\xff\xff\xff" + GIF[10:],
    "tiff, half": TIFF[:20],
    "tiff, without pixels": tiff(16, 1, 1, b"", 1000),
    "tiff, strange bits": tiff(13, 1, 1, bytes(99)),
    "tiff, huge": tiff(8, 1, 1, b"", 2**31 - 1),
    "tiff, in a circle": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "bmp, half": BMP[: len(BMP) // 2],
    "bmp, head only": BMP[:20],
    "webp, half": WEBP[: len(WEBP) // 2],
    "webp, head only": WEBP[:16],
    "ppm, too short": b"P6 100 100 255 abc",
    "ppm, huge": b"P6 99999 99999 255 abc",
    "ppm, negative": b"P6 -5 5 255 abc",
    "ppm, no number": b"P5 x y z",
    "ppm, letters": b"P2 2 1 255 a b",
}


def entries(folder):
    """Entries of a folder that are no files."""
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "circle").symlink_to("circle")
    (folder / "dangling").symlink_to("nothing")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "to a pipe").symlink_to("pipe")
    with (folder / "sparse").open("wb") as file:
        file.write(PNG[:33])
        file.truncate(1 << 40)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(folder / "socket"))
    kinds = {"folder": "a folder", "pipe": "a pipe", "circle": os.strerror(errno.ELOOP), "to a pipe": "a pipe",
             "dangling": os.strerror(errno.ENOENT), "zero": "a device", "socket": "a socket", "sparse": "bytes, more",
             "x" * 300: os.strerror(errno.ENAMETOOLONG), "a\0b": "null", "sparse/x": "",
             "a\nb\x1b[31m": ""}  # fmt: skip
    return {folder / name: why for name, why in kinds.items()}


def test_bad_files_are_a_line_each_and_the_others_go_on(tmp_path, capfd):
    good = tmp_path / "good.png"
    good.write_bytes(PNG)
    paths = entries(tmp_path)
    for number, content in enumerate(BAD.values()):
        path = tmp_path / f"bad {number}.png"
        path.write_bytes(content)
        paths[path] = ""
    given = list(itertools.chain.from_iterable((path, good) for path in paths))
    assert len(paths) > 50
    before = len(list(Path("/proc/self/fd").iterdir()))
    started = time.monotonic()
    results = list(images.stream(given, SIZE, "bicubic", workers=3))
    assert time.monotonic() - started < 15
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert [path for path, _ in results] == given
    for _, result in results[1::2]:
        np.testing.assert_array_equal(result, NOISE)
    names = {tmp_path / f"bad {number}.png": name for number, name in enumerate(BAD)}
    for path, result in results[::2]:
        assert isinstance(result, DataError), names.get(path, path)
        line = str(result)
        assert line.isprintable() and len(line) < len(str(tmp_path)) + 500, line
        assert paths[path] in line.removeprefix(str(tmp_path)), line
        assert "\n" in path.name or "\0" in path.name or line.startswith(f"{path}: "), line
        assert result.__context__ is None and result.__traceback__ is None  # they would hold the picture
        if "huge" in names.get(path, ""):
            assert "pixels, more than 100,000,000" in line, line
    assert capfd.readouterr() == ("", "")


def test_what_may_not_be_read_and_full_memory(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    for error, why in ((PermissionError(13, "Permission denied"), "Permission denied"), (MemoryError(), "memory"),
                       (RecursionError("deep"), "deep"), (Image.DecompressionBombError("x"), "memory")):  # fmt: skip

        def fail(*_, error=error):
            raise error

        with monkeypatch.context() as patch, pytest.raises(DataError, match=why):
            patch.setattr(decoding.os, "open", fail)
            decoding.read(path, SIZE, "bicubic")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(decoding, "_open", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        decoding.read(path, SIZE, "bicubic")


def test_large_but_not_too_large_does_not_warn(tmp_path):
    row = b"P4 9500 10000\n" + bytes(9500 // 8 + 1) * 10_000  # 95 million pixels, of which Pillow would warn
    assert (read(tmp_path, row) == 255).all()


def test_files_are_found_in_order(tmp_path):
    names = ("b.png", "A.JPG", "a/z.jpeg", "a/y.webp", "a/c/d.tiff", "x.txt", ".hidden.png", ".git/x.png", "c.pdf",
             "e.eps", "no suffix", "f.gif", "g.bmp", "h.pgm", "i.jfif", "j.jpe", "k.ppm", "l.tif")  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "circle").symlink_to("..")
    (tmp_path / "m.png").symlink_to("m.png")
    (tmp_path / "n.png").mkdir()
    (tmp_path / "n.png" / "o.png").touch()
    os.mkfifo(tmp_path / "p.png")
    found = images.find([str(tmp_path)])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "A.JPG", "a/c/d.tiff", "a/y.webp", "a/z.jpeg", "b.png", "f.gif", "g.bmp", "h.pgm", "i.jfif", "j.jpe", "k.ppm",
        "l.tif", "m.png", "n.png/o.png", "p.png",
    ]  # fmt: skip
    given = [str(tmp_path / name) for name in ("x.txt", "b.png", "b.png", ".hidden.png", "a")]
    assert len(images.find(given)) == 7 and [str(path) for path in images.find(given)[:4]] == given[:4]
    assert not {".pdf", ".eps", ".ps", ".wmf", ".ico", ".mpeg"} & decoding.SUFFIXES


def test_links_to_folders_do_not_double_the_ways(tmp_path):
    for i in range(30):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "x.png").touch()
        for name in "ab":
            (tmp_path / str(i) / name).symlink_to(tmp_path / str(i + 1))
    assert len(images.find([str(tmp_path)])) == 30


def test_a_name_that_leads_nowhere_is_a_line(tmp_path):
    (tmp_path / "holds text").mkdir()
    (tmp_path / "holds text" / "x.txt").touch()
    names = [*entries(tmp_path), "", tmp_path / "a" / "b", tmp_path / "holds text"]
    for name in names:
        if str(name).endswith("sparse"):
            continue
        with pytest.raises(UsageError) as raised:
            images.find([str(name)])
        assert str(raised.value).isprintable()


def test_a_folder_that_cannot_be_read_is_a_line(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "x.png").touch()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(images.os, "scandir", refuse)
    with pytest.raises(DataError, match=r"closed: the folder cannot be read \(Permission denied\)"):
        images.find([str(tmp_path)])


# The stream.


@pytest.fixture
def counted(monkeypatch):
    """Replaces reading by something that counts."""
    done = []

    def decoded(path, size, method):
        time.sleep(0.01 if path % 37 == 0 else 0.0)
        done.append(path)
        return np.full(1, path)

    monkeypatch.setattr(decoding, "_decoded", decoded)
    return done


@pytest.mark.parametrize("count", [0, 1, 5, 16, 100, 1000])
def test_order_is_kept(count, counted):
    for workers in (None, 1, 5):
        got = list(images.stream(range(count), SIZE, "bicubic", workers))
        assert [(path, int(value[0])) for path, value in got] == [(i, i) for i in range(count)]


def test_a_bounded_number_is_read_ahead_and_an_early_end_leaves_no_thread(counted):
    reading = images.stream(range(100_000), SIZE, "bicubic", workers=2)
    for taken in range(40):
        next(reading)
        time.sleep(0.005)
        assert len(counted) <= taken + 1 + 2 * 128
    assert len(counted) > 60  # it does read ahead
    reading.close()
    after = len(counted)
    time.sleep(0.1)
    assert len(counted) == after < 340


def test_an_interrupt_ends_the_threads(counted):
    with pytest.raises(KeyboardInterrupt):
        for path, _ in images.stream(range(1000), SIZE, "bicubic", workers=2):
            if path == 20:
                raise KeyboardInterrupt
    deadline = time.monotonic() + 5  # the generator is closed when the exception lets go of it
    while threading.active_count() > 1 and time.monotonic() < deadline:
        time.sleep(0.01)


def test_pictures_are_read_in_several_threads(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on a Mac
    assert 1 <= decoding.threads(8) <= 8 and decoding.threads(1) == 1
    together = threading.Barrier(3, timeout=10)
    monkeypatch.setattr(decoding, "_decoded", lambda path, size, method: np.full(1, together.wait()))
    got = list(images.stream(range(6), SIZE, "bicubic", workers=3))
    assert sorted(int(value[0]) for _, value in got) == [0, 0, 1, 1, 2, 2]


# The sheet.


@pytest.mark.parametrize("count", [0, 1, 3, 101])
def test_a_sheet_is_drawn_of_any_names(count, tmp_path):
    odd = ("$x_1$", "a\nb", "שלום.png", "smile 😀👩‍👩‍👧.png", "\udcff.png", "日本", "", "\\frac$", "x" * 400)
    shown = [(odd[i % len(odd)], NOISE, [(odd[-i % len(odd)], 0.5)] * (i % 5)) for i in range(count)]
    with matplotlib.rc_context({"text.usetex": True, "font.family": "no such"}):
        sheet.draw(tmp_path / "x.png", shown, more=2)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width < 2000 and picture.height < 3000


def test_a_sheet_has_each_picture_upright_between_its_name_and_its_classes(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(sheet, "save", lambda figure, path: drawn.append(figure))
    shown = [(f"file {i}", NOISE[::-1] // (i + 1), [(f"class {i}", 0.5)]) for i in range(5)]
    sheet.draw(tmp_path / "x.png", shown, more=0)
    [axes] = drawn[0].axes
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # downwards
    texts = {text.get_text(): text.get_position() for text in axes.texts}
    for (name, picture, [(label, share)]), image in zip(shown, axes.images, strict=True):
        np.testing.assert_array_equal(image.get_array(), picture)
        left, right, bottom, top = image.get_extent()
        assert image.origin == "upper" and left < right and top < bottom
        (x, above), (_, below) = texts[name], texts[f"{100 * share:.1f} %  {label}"]
        assert above < top < bottom < below and x == pytest.approx((left + right) / 2)


def test_names_are_cut_in_the_middle():
    assert sheet.cut("abcdefghij", 10) == "abcdefghij"
    assert sheet.cut("abcdefghijk", 10) == "abcd…ghijk"
    assert sheet.cut("a\nb\tc\u202ed日\udc80e\u0301", 20) == "a b cd□□é"
