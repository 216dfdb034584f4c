"""What is done to a real NIfTI volume, PNG, bitmap and slide: kind, name, how often, verdict, reasons, how."""

from __future__ import annotations

import gzip
import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import nibabel
import numpy as np
from PIL import Image, PngImagePlugin

from tests.image_mutations import PERSON, Bench, Mutation
from tests.image_mutations_dicom import ANYTHING, zeros

Bytes = Callable[[bytes, random.Random], bytes]


def file(change: Bytes, where: str = "images") -> Mutation:
    """The bytes of the image's file, or of its mask's."""

    def how(b: Bench, r: random.Random) -> None:
        path = next((b.folder / where).iterdir())
        data = path.read_bytes()
        path.unlink()  # it may be a link to the clean one
        path.write_bytes(change(data, r))

    return how


def cut(least: int = 0) -> Bytes:
    return lambda data, r: data[: r.randrange(least, len(data) - 1)]


def flipped(low: int, high: int | None = None, count: int = 1) -> Bytes:
    def change(data: bytes, r: random.Random) -> bytes:
        out = bytearray(data)
        for _ in range(count):
            out[r.randrange(low, len(data) if high is None else high)] ^= 1 << r.randrange(8)
        return bytes(out)

    return change


def damaged(data: bytes, r: random.Random) -> bytes:
    """A flipped bit of a gzip file that changes what it holds: the last bits of a block may be padding."""
    while True:
        out = flipped(40)(data, r)
        try:
            if gzip.decompress(out) != gzip.decompress(data):
                return out
        except (OSError, EOFError, zlib.error):
            return out


def junk(data: bytes, r: random.Random) -> bytes:
    return r.randbytes(r.randrange(1, 4000))


def put(at: int, form: str, *values: Any) -> Bytes:
    """A field of a NIfTI-1 header."""

    def change(data: bytes, r: random.Random) -> bytes:
        value = struct.pack("<" + form, *(v if isinstance(v := r.choice(values), tuple) else (v,)))
        return data[:at] + value + data[at + len(value) :]

    return change


def inside(change: Bytes) -> Bytes:
    """Of what is compressed."""
    return lambda data, r: gzip.compress(change(gzip.decompress(data), r), 1, mtime=0)


def plain(change: Bytes) -> Mutation:
    """Written as .nii, then changed."""

    def how(b: Bench, r: random.Random) -> None:
        path = b.images / f"{PERSON}.nii.gz"
        data = gzip.decompress(path.read_bytes())
        path.unlink()
        (b.images / f"{PERSON}.nii").write_bytes(change(data, r))

    return how


def volume(change: Callable[[Any, random.Random], Any], where: str = "images") -> Mutation:
    """The volume rewritten by nibabel."""

    def how(b: Bench, r: random.Random) -> None:
        path = next((b.folder / where).iterdir())
        changed = change(nibabel.load(path), r)
        data = np.asarray(changed.dataobj)  # before the file goes
        changed = type(changed)(data, changed.affine, changed.header)
        path.unlink()
        nibabel.save(changed, path)

    return how


def voxels(change: Callable[[Any, random.Random], Any], affine: Callable[[Any], Any] = lambda a: a) -> Callable[[Any, random.Random], Any]:
    return lambda v, r: nibabel.Nifti1Image(change(np.array(v.dataobj), r), affine(v.affine.copy()))


def spoiled(bad: float, count: int) -> Callable[[Any, random.Random], Any]:
    def change(data: Any, r: random.Random) -> Any:
        for _ in range(count):
            data[tuple(r.randrange(n) for n in data.shape)] = bad
        return data

    return voxels(change)


def moved(affine: Any) -> Any:
    affine[:3, 3] += 10.0
    return affine


def members(data: bytes, r: random.Random) -> bytes:
    """The same as several gzip members, one after the other."""
    whole = gzip.decompress(data)
    ends = sorted(r.sample(range(1, len(whole)), 3))
    return b"".join(gzip.compress(whole[a:z], mtime=0) for a, z in zip([0, *ends], [*ends, len(whole)], strict=True))


def gzip_zeros(megabytes: int, before: bytes) -> bytes:
    """A gzip file of ``before`` and zeros that inflate to so many megabytes, its checksum right."""
    check, block = zlib.crc32(before), bytes(2**20)
    for _ in range(megabytes):
        check = zlib.crc32(block, check)
    length = (len(before) + megabytes * 2**20) & 0xFFFFFFFF
    return b"\x1f\x8b\x08\0\0\0\0\0\x02\xff" + zeros(megabytes, before=before) + struct.pack("<II", check, length)


def bomb(megabytes: int, shape: tuple[int, int, int] | None, code: int = 2, bits: int = 8) -> Bytes:
    """Zeros behind a header; ``shape``: what it declares, None: the clean one's."""

    def change(data: bytes, r: random.Random) -> bytes:
        whole = gzip.decompress(data)
        head = whole if shape is None else put(40, "4h", (3, *shape))(put(70, "hh", (code, bits))(whole, r), r)[:352]
        return gzip_zeros(megabytes, head)

    return change


def extended(data: bytes, r: random.Random) -> bytes:
    """With a comment in a header extension (code 6)."""
    text = b"seen by nobody".ljust(24, b"\0")
    whole = put(108, "f", 352.0 + 32)(data, r)
    return whole[:348] + b"\1\0\0\0" + struct.pack("<ii", 32, 6) + text + whole[352:]


# --- PNG: length, type, data, CRC (W3C PNG, section 5.3)


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    out, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        out.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return out


def png(parts: list[tuple[bytes, bytes]]) -> bytes:
    body = (struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def rechunked(change: Callable[[list[tuple[bytes, bytes]], random.Random], list[tuple[bytes, bytes]]]) -> Bytes:
    """Chunks changed, every CRC made right again."""
    return lambda data, r: png(change(chunks(data), r))


def header(at: int, form: str, *values: Any) -> Bytes:
    """A field of IHDR: width 0, height 4, bit depth 8, colour type 9, interlace 12."""

    def change(parts: list[tuple[bytes, bytes]], r: random.Random) -> list[tuple[bytes, bytes]]:
        value = struct.pack(form, r.choice(values))
        name, data = parts[0]
        return [(name, data[:at] + value + data[at + len(value) :]), *parts[1:]]

    return rechunked(change)


def stream(change: Bytes) -> Bytes:
    """The bytes of the image data before compression; packed again with new checksums."""

    def again(parts: list[tuple[bytes, bytes]], r: random.Random) -> list[tuple[bytes, bytes]]:
        packed = zlib.compress(change(zlib.decompress(b"".join(d for n, d in parts if n == b"IDAT")), r))
        return [*(p for p in parts if p[0] not in (b"IDAT", b"IEND")), (b"IDAT", packed), (b"IEND", b"")]

    return rechunked(again)


def packed_data(change: Bytes) -> Bytes:
    def again(parts: list[tuple[bytes, bytes]], r: random.Random) -> list[tuple[bytes, bytes]]:
        packed = change(b"".join(d for n, d in parts if n == b"IDAT"), r)
        return [*(p for p in parts if p[0] not in (b"IDAT", b"IEND")), (b"IDAT", packed), (b"IEND", b"")]

    return rechunked(again)


def split_data(parts: list[tuple[bytes, bytes]], r: random.Random) -> list[tuple[bytes, bytes]]:
    packed = b"".join(d for n, d in parts if n == b"IDAT")
    at = sorted(r.sample(range(1, len(packed)), 5))
    return [parts[0], *((b"IDAT", packed[a:z]) for a, z in zip([0, *at], [*at, len(packed)], strict=True)), (b"IEND", b"")]


def shuffled_data(parts: list[tuple[bytes, bytes]], r: random.Random) -> list[tuple[bytes, bytes]]:
    split = split_data(parts, r)
    return [split[0], *reversed(split[1:-1]), split[-1]]


def png_bomb(width: int, height: int, bits: int, colour: int, megabytes: int) -> Bytes:
    def change(data: bytes, r: random.Random) -> bytes:
        head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
        return png([(b"IHDR", head), (b"IDAT", b"\x78\xda" + zeros(megabytes) + b"\0\0\0\0"), (b"IEND", b"")])

    return change


def with_part(name: bytes, content: Callable[[random.Random], bytes]) -> Bytes:
    return rechunked(lambda parts, r: [parts[0], (name, content(r)), *parts[1:]])


def saved(**options: Any) -> Bytes:
    """The same picture, saved otherwise."""

    def change(data: bytes, r: random.Random) -> bytes:
        picture = Image.open(io.BytesIO(data))
        picture.load()
        picture.save(out := io.BytesIO(), "PNG", **options)
        return out.getvalue()

    return change


def with_alpha(data: bytes, r: random.Random) -> bytes:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture.putalpha(255)
    picture.save(out := io.BytesIO(), "PNG")
    return out.getvalue()


def noted(data: bytes, r: random.Random) -> bytes:
    picture = Image.open(io.BytesIO(data))
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "stained on Monday", zip=True)
    picture.save(out := io.BytesIO(), "PNG", pnginfo=notes)
    return out.getvalue()


def drawn(change: Callable[[Any, random.Random], Any]) -> Mutation:
    """The mask's values."""

    def how(b: Bench, r: random.Random) -> None:
        path = b.masks / f"{PERSON}.png"
        Image.fromarray(change(np.array(Image.open(path)), r)).save(path)

    return how


def one_value(value: int) -> Callable[[Any, random.Random], Any]:
    def change(data: Any, r: random.Random) -> Any:
        data[r.randrange(data.shape[0]), r.randrange(data.shape[1])] = value
        return data

    return change


def other_person(b: Bench, r: random.Random) -> None:
    (b.masks / f"{PERSON}.png").write_bytes((b.data / "wbc_two_labs/Dataset 1/002.png").read_bytes())


# --- slides: a TIFF whose first directory is at byte 1,275,950


def tag(number: int, value: int | None = None, *, count: int | None = None, offset: int | None = None) -> Bytes:
    """An entry of the first directory (TIFF 6.0, section 2): its value, count, or the first of the values that it points to."""

    def change(data: bytes, r: random.Random) -> bytes:
        out = bytearray(data)
        (at,) = struct.unpack("<I", data[4:8])
        (entries,) = struct.unpack("<H", data[at : at + 2])
        for k in range(entries):
            entry = at + 2 + 12 * k
            code, kind, _, place = struct.unpack("<HHII", data[entry : entry + 12])
            if code == number:
                if value is not None:
                    struct.pack_into("<HHII", out, entry, code, 4 if value > 65535 else kind, 1, value)
                if count is not None:
                    struct.pack_into("<I", out, entry + 4, count)
                if offset is not None:
                    for tile in range(8, 100):
                        struct.pack_into("<I", out, place + 4 * tile, offset)
                return bytes(out)
        raise AssertionError(f"no tag {number}")

    return change


def circle(data: bytes, r: random.Random) -> bytes:
    """The first directory names itself as the next one."""
    (at,) = struct.unpack("<I", data[4:8])
    (entries,) = struct.unpack("<H", data[at : at + 2])
    return data[: at + 2 + 12 * entries] + struct.pack("<I", at) + data[at + 6 + 12 * entries :]


def huge(data: bytes, r: random.Random) -> bytes:
    return tag(257, 2**30)(tag(256, 2**30)(data, r), r)


def wide(data: bytes, r: random.Random) -> bytes:
    return tag(257, 100_000)(tag(256, 100_000)(data, r), r)


def described(old: bytes, new: bytes) -> Bytes:
    def change(data: bytes, r: random.Random) -> bytes:
        assert old in data
        assert len(old) == len(new)
        return data.replace(old, new, 1)

    return change


def no_tile(data: bytes, r: random.Random) -> bytes:
    """Image data of many tiles overwritten."""
    start = r.randrange(200_000, 600_000)
    return data[:start] + r.randbytes(400_000) + data[start + 400_000 :]


HURT = "truncated unreadable wrong-length"
MISFIT = "mask-mismatch"
TABLE: list[tuple[str, str, int, str, str, Mutation]] = [
    ("NIfTI", name, count, verdict, reasons, how)
    for name, count, verdict, reasons, how in [
        ("cut short, compressed", 6, "wrong", HURT, file(cut())),
        ("cut short", 4, "wrong", HURT, plain(cut())),
        ("the checksum is cut off", 1, "wrong", HURT, file(lambda data, r: data[:-4])),
        ("flipped bit in compressed data", 10, "wrong", HURT + " non-finite geometry too-large not-an-image", file(damaged)),
        ("flipped bit in raw voxels", 5, "untold", ANYTHING, plain(flipped(352))),
        ("flipped bit in the header", 10, "untold", ANYTHING, plain(flipped(0, 348))),
        ("flipped bits in the header", 4, "untold", ANYTHING, file(inside(flipped(0, 348, 20)))),
        ("another content", 2, "wrong", HURT, file(junk)),
        ("an empty file", 1, "wrong", HURT, file(lambda data, r: b"")),
        ("more columns", 2, "wrong", HURT, file(inside(put(42, "h", 165, 328)))),
        ("fewer columns", 2, "wrong", HURT, file(inside(put(42, "h", 163, 82)))),
        ("fewer slices", 1, "wrong", HURT, plain(put(46, "h", 25, 13))),
        ("32,767 slices", 1, "wrong", HURT + " too-large", file(inside(put(46, "h", 32767)))),
        ("32,767 voxels each way", 1, "wrong", HURT + " too-large", plain(put(42, "3h", (32767, 32767, 32767)))),
        ("no columns", 1, "wrong", HURT + " not-an-image", file(inside(put(42, "h", 0, -4)))),
        ("nine axes", 1, "wrong", HURT + " not-an-image", file(inside(put(40, "h", 9, -1)))),
        ("voxels begin too late", 1, "wrong", HURT, file(inside(put(108, "f", 400_000.0)))),
        ("voxels begin nowhere", 2, "wrong", HURT, file(inside(put(108, "f", 1e30, float("inf"), -7.0)))),
        ("another type of voxel", 2, "wrong", HURT, file(inside(put(70, "hh", (4, 16), (64, 64))))),
        ("no known type of voxel", 1, "wrong", HURT, file(inside(put(70, "h", 7777)))),
        ("colours for voxels", 1, "wrong", HURT + " not-an-image", file(inside(put(70, "hh", (128, 24), (1792, 128))))),
        ("beyond float32", 2, "wrong", "non-finite rescale unreadable", file(inside(put(112, "ff", (3e38, 0.0), (1.0, float("inf")))))),
        ("an intercept that is no number", 1, "wrong", "rescale unreadable non-finite", file(inside(put(112, "ff", (2.0, float("nan")))))),
        ("an affine that is no number", 1, "wrong", "geometry unreadable", file(inside(put(280, "f", float("nan"), float("inf"))))),
        ("an affine that is flat", 1, "wrong", "geometry unreadable", file(inside(put(280, "12f", (0.0,) * 12)))),
        ("a voxel is not a number", 2, "wrong", "non-finite", volume(spoiled(float("nan"), 1))),
        ("voxels are infinite", 2, "wrong", "non-finite", volume(spoiled(float("-inf"), 9))),
        ("bomb of 8 GB", 1, "wrong", "too-large wrong-length", file(bomb(64, (2048, 2048, 2048)))),
        ("bomb that is what it says, 1 GB", 1, "wrong", "too-large", file(bomb(1024, (1024, 1024, 1024)))),
        ("bomb that is what it says, 512 MB", 1, "wrong", "too-large", file(bomb(512, (1024, 512, 1024)))),
        ("bomb behind the voxels", 2, "wrong", "too-large wrong-length", file(bomb(3000, None))),
        ("not compressed", 1, "harmless", ANYTHING, plain(lambda data, r: data)),
        ("compressed otherwise", 2, "harmless", ANYTHING, file(lambda d, r: gzip.compress(gzip.decompress(d), r.choice((1, 9))))),
        ("compressed in several members", 2, "harmless", ANYTHING, file(members)),
        ("a comment in the header's extension", 1, "harmless", ANYTHING, plain(extended)),
        ("a description", 1, "harmless", ANYTHING, file(inside(put(148, "20s", b"exported on Monday")))),
        ("a slope of 0 or none", 2, "harmless", ANYTHING, file(inside(put(112, "ff", (0.0, 0.0), (float("nan"), 0.0), (1.0, 0.0))))),
        ("double precision", 1, "harmless", ANYTHING, volume(voxels(lambda data, r: data.astype(np.float64)))),
        ("NIfTI-2", 1, "harmless", ANYTHING, volume(lambda v, r: nibabel.Nifti2Image(np.array(v.dataobj), v.affine))),
        ("zeros after the end", 1, "harmless", ANYTHING, file(lambda data, r: data + bytes(512))),
    ]
] + [
    ("NIfTI + mask", name, count, verdict, reasons, how)
    for name, count, verdict, reasons, how in [
        ("mask of another size", 1, "wrong", MISFIT, volume(voxels(lambda data, r: data[:-1]), "masks")),
        ("mask elsewhere", 1, "wrong", MISFIT, volume(voxels(lambda data, r: data, moved), "masks")),
        ("mask with other values", 1, "wrong", MISFIT, volume(voxels(lambda data, r: data * 3), "masks")),
        ("mask transposed", 1, "wrong", MISFIT, volume(voxels(lambda data, r: data.swapaxes(0, 1)), "masks")),
        ("mask with half values", 1, "wrong", MISFIT, volume(voxels(lambda data, r: data * np.float32(0.5)), "masks")),
        ("mask cut short", 2, "wrong", HURT, file(cut(), "masks")),
        ("flipped bit in the mask's compressed data", 3, "wrong", HURT + " mask-mismatch too-large", file(damaged, "masks")),
        ("mask that is a bomb", 1, "wrong", MISFIT + " too-large wrong-length", file(bomb(2000, (2000, 1000, 1000)), "masks")),
        ("bomb behind the mask", 1, "wrong", MISFIT + " too-large wrong-length", file(bomb(2000, None), "masks")),
        ("mask in whole floats", 1, "harmless", ANYTHING, volume(voxels(lambda data, r: data.astype(np.float32)), "masks")),
    ]
] + [
    ("PNG", name, count, verdict, reasons, how)
    for name, count, verdict, reasons, how in [
        ("cut short", 8, "wrong", HURT, file(cut())),
        ("the last chunk is missing", 1, "wrong", HURT, file(lambda data, r: data[:-12])),
        ("flipped bit", 10, "wrong", HURT + " too-large", file(flipped(0))),
        ("flipped bit in compressed data, checksum made right", 5, "wrong", HURT, file(packed_data(flipped(2)))),
        ("flipped bit in raw pixels", 4, "untold", ANYTHING, file(stream(flipped(1)))),
        ("image data in another order", 2, "wrong", HURT, file(rechunked(shuffled_data))),
        ("no image data", 1, "wrong", HURT, file(rechunked(lambda parts, r: [p for p in parts if p[0] != b"IDAT"]))),
        ("image data twice", 1, "wrong", HURT, file(rechunked(lambda p, r: [*p[:-1], *[c for c in p if c[0] == b"IDAT"], p[-1]]))),
        ("more rows", 2, "wrong", HURT, file(header(4, ">I", 301, 600))),
        ("fewer rows", 2, "wrong", HURT, file(header(4, ">I", 299, 150))),
        ("more columns", 1, "wrong", HURT, file(header(0, ">I", 301))),
        ("fewer columns", 2, "wrong", HURT, file(header(0, ">I", 299, 150))),
        ("no rows", 1, "wrong", HURT, file(header(4, ">I", 0))),
        ("2^31 - 1 columns", 1, "wrong", HURT + " too-large", file(header(0, ">I", 2**31 - 1))),
        ("another depth", 2, "wrong", HURT, file(header(8, ">B", 16, 4, 7))),
        ("another kind of colour", 2, "wrong", HURT, file(header(9, ">B", 0, 6, 3, 5))),
        ("said to be interlaced", 1, "wrong", HURT, file(header(12, ">B", 1, 9))),
        ("too much image data", 1, "wrong", HURT, file(stream(lambda data, r: data + bytes(901)))),
        ("too little image data", 1, "wrong", HURT, file(stream(lambda data, r: data[: -r.randrange(1, 9000)]))),
        ("no filter of that number", 1, "wrong", HURT, file(stream(lambda data, r: b"\x09" + data[1:]))),
        ("bomb of 50,000 x 50,000", 1, "wrong", "too-large", file(png_bomb(50_000, 50_000, 8, 2, 100))),
        ("bomb of 11,000 x 11,000, as it says", 1, "wrong", "too-large", file(png_bomb(11_000, 11_000, 8, 2, 347))),
        ("bomb of one bit a pixel", 1, "wrong", "too-large wrong-length", file(png_bomb(40_000, 40_000, 1, 0, 191))),
        ("bomb behind the image data", 1, "wrong", "too-large wrong-length", file(png_bomb(300, 300, 8, 2, 3000))),
        ("bomb in a text", 1, "untold", ANYTHING, file(with_part(b"zTXt", lambda r: b"Comment\0\0\x78\xda" + zeros(2000)))),
        ("bomb in a colour profile", 1, "untold", ANYTHING, file(with_part(b"iCCP", lambda r: b"icc\0\0\x78\xda" + zeros(2000)))),
        ("another content", 1, "wrong", HURT, file(junk)),
        ("an empty file", 1, "wrong", HURT, file(lambda data, r: b"")),
        ("compressed otherwise", 2, "harmless", ANYTHING, file(lambda d, r: saved(compress_level=r.choice((1, 9)))(d, r))),
        ("a comment", 1, "harmless", ANYTHING, file(noted)),
        ("image data in pieces", 1, "harmless", ANYTHING, file(rechunked(split_data))),
        ("opaque all over", 1, "harmless", ANYTHING, file(with_alpha)),
        ("zeros after the end", 1, "harmless", ANYTHING, file(lambda data, r: data + bytes(100))),
        ("a private chunk", 1, "harmless", ANYTHING, file(with_part(b"laBo", lambda r: r.randbytes(50)))),
    ]
] + [
    ("PNG, grey", "cut short", 2, "wrong", HURT, file(cut())),
    ("PNG, grey", "flipped bit", 3, "wrong", HURT + " too-large", file(flipped(0))),
    ("PNG, grey", "fewer rows", 1, "wrong", HURT, file(header(4, ">I", 119))),
    ("PNG, grey", "compressed otherwise", 1, "harmless", ANYTHING, file(saved(compress_level=2))),
    ("PNG + mask", "mask of another person", 1, "wrong", MISFIT, other_person),
    ("PNG + mask", "mask with an unknown value", 2, "wrong", MISFIT, drawn(one_value(17))),
    ("PNG + mask", "mask in colours", 1, "wrong", MISFIT, drawn(lambda data, r: np.stack([data] * 3, -1))),
    ("PNG + mask", "mask cut short", 2, "wrong", HURT + " mask-mismatch", file(cut(), "masks")),
    ("PNG + mask", "flipped bit in the mask", 2, "wrong", HURT + " mask-mismatch too-large", file(flipped(0), "masks")),
    ("PNG + mask", "mask that is a bomb", 1, "wrong", MISFIT + " too-large", file(png_bomb(50_000, 50_000, 8, 0, 100), "masks")),
    ("PNG + mask", "mask compressed otherwise", 1, "harmless", ANYTHING, file(saved(compress_level=1), "masks")),
    ("BMP", "cut short", 4, "wrong", HURT, file(cut())),
    ("BMP", "more rows", 1, "wrong", HURT, file(put(22, "i", 121, 10_000))),
    ("BMP", "fewer rows", 1, "wrong", HURT, file(put(22, "i", 100))),
    ("BMP", "2^30 columns", 1, "wrong", HURT + " too-large", file(put(18, "i", 2**30))),
    ("BMP", "flipped bit in the header", 4, "untold", ANYTHING, file(flipped(0, 54))),
    ("BMP", "flipped bit in the pixels", 2, "untold", ANYTHING, file(flipped(54))),
] + [
    ("SVS", name, count, verdict, reasons, how)
    for name, count, verdict, reasons, how in [
        ("cut short", 5, "wrong", HURT + " not-an-image too-large", file(cut())),
        ("the label's directory cut short", 1, "untold", ANYTHING, file(lambda data, r: data[:-200])),
        ("flipped bits in compressed tiles", 4, "untold", ANYTHING, file(flipped(10_000, 1_200_000, 20))),
        ("flipped bit in a directory", 5, "untold", ANYTHING, file(flipped(1_275_950, 1_276_200))),
        ("flipped bit in the file's first bytes", 2, "untold", ANYTHING, file(flipped(0, 8))),
        ("tiles overwritten", 2, "wrong", HURT + " compressed", file(no_tile)),
        ("tiles beyond the file's end", 1, "wrong", HURT, file(tag(324, offset=2**31))),
        ("tiles in the header", 1, "wrong", HURT + " compressed", file(tag(324, offset=4))),
        ("tile lengths of 4 GB", 1, "wrong", HURT, file(tag(325, offset=2**32 - 1))),
        ("too few tiles", 1, "wrong", HURT, file(tag(324, count=3))),
        ("2^30 pixels each way", 1, "wrong", HURT + " too-large", file(huge)),
        ("100,000 pixels each way", 1, "wrong", HURT + " too-large", file(wide)),
        ("a circle of directories", 1, "untold", ANYTHING, file(circle)),
        ("another compression", 1, "wrong", HURT + " compressed", file(tag(259, 5))),
        ("tiles of 0 pixels", 1, "wrong", HURT, file(tag(322, 0))),
        ("another content", 1, "wrong", HURT + " not-an-image", file(junk)),
        ("another person's scanner", 1, "harmless", ANYTHING, file(described(b"ScanScope ID = CPAPERIOCS", b"ScanScope ID = XXXXXXXXXX"))),
        ("bytes after the end", 1, "harmless", ANYTHING, file(lambda data, r: data + r.randbytes(1000))),
    ]
]  # fmt: skip
