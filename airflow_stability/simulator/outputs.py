"""What the simulator generates: very small pictures, sounds and 3D models. Knows no HTTP.

Each is a valid file of its format, made from a digest: equal digests give equal files.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from airflow_stability.simulator.endpoints import MAX_SEED

#: Width and height of a picture, in pixels. A multiple of 8, for JPEG.
SIDE = 64

#: Red, green and blue of a picture that the moderation has blurred.
GREY = b"\x80\x80\x80"

#: The media type of each format.
MEDIA_TYPES = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "glb": "model/gltf-binary",
}


@dataclass(frozen=True)
class Output:
    """What a call has generated, as the response describes it."""

    content: bytes
    media_type: str
    seed: int
    finish_reason: str


def make_output(file_format: str, digest: bytes, *, seed: int = 0, blurred: bool = False) -> Output:
    """Return a file of a format.

    :param digest: 32 bytes that decide what the file looks like.
    :param seed: the seed that was asked for; 0 takes one from the digest.
    :param blurred: whether the moderation has blurred the output.
    """
    looks = GREY + digest[3:] if blurred else digest
    return Output(
        content=_MAKERS[file_format](looks),
        media_type=MEDIA_TYPES[file_format],
        seed=seed or int.from_bytes(digest[3:7], "big") % MAX_SEED + 1,
        finish_reason="CONTENT_FILTERED" if blurred else "SUCCESS",
    )


def _png(digest: bytes) -> bytes:
    """A picture of one colour."""
    row = b"\x00" + digest[:3] * SIDE
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * SIDE)),
        (b"IEND", b""),
    )
    png = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        png += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png


def _jpeg(digest: bytes) -> bytes:
    """A grey picture, with the digest as its comment."""
    # The shortest Huffman tables there are: of one code, a 0 bit, which means "no difference" and "the end".
    one_code = b"\x01" + bytes(15) + b"\x00"
    segments = (
        (b"\xfe", digest.hex().encode()),
        (b"\xdb", b"\x00" + b"\x01" * 64),
        (b"\xc0", struct.pack(">BHHB", 8, SIDE, SIDE, 1) + b"\x01\x11\x00"),
        (b"\xc4", b"\x00" + one_code),
        (b"\xc4", b"\x10" + one_code),
        (b"\xda", b"\x01\x01\x00\x00\x3f\x00"),
    )
    head = b"".join(b"\xff" + kind + struct.pack(">H", len(data) + 2) + data for kind, data in segments)
    blocks = (SIDE // 8) ** 2
    return b"\xff\xd8" + head + bytes(blocks * 2 // 8) + b"\xff\xd9"


def _webp(digest: bytes) -> bytes:
    """A picture of one colour, in lossless WebP."""
    red, green, blue = digest[:3]
    fields = [(0x2F, 8), (SIDE - 1, 14), (SIDE - 1, 14), (0, 1), (0, 3), (0, 3)]
    # One symbol in each of the five alphabets, so that a pixel takes no bits.
    for symbol in (green, red, blue, 255):
        fields += [(0b101, 3), (symbol, 8)]
    fields += [(0b001, 3), (0, 1)]
    bits, length = 0, 0
    for value, width in fields:
        bits |= value << length
        length += width
    data = bits.to_bytes((length + 7) // 8, "little")
    # Readers skip a chunk that they do not know.
    return _riff(b"WEBP", (b"VP8L", data), (b"NOTE", digest))


def _wav(digest: bytes) -> bytes:
    """Eight bits of sound, 8000 times a second."""
    header = struct.pack("<HHIIHH", 1, 1, 8000, 8000, 1, 8)
    return _riff(b"WAVE", (b"fmt ", header), (b"data", digest))


def _riff(form: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    content = form
    for kind, data in chunks:
        content += kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def _mp3(digest: bytes) -> bytes:
    """One frame of silence. Readers skip what a frame has beyond its sound."""
    # MPEG-1 layer III, 128 kbit/s, 44.1 kHz, one channel: such a frame has 417 bytes.
    head = b"\xff\xfb\x90\xc4" + bytes(17)
    return (head + digest).ljust(417, b"\x00")


def _glb(digest: bytes) -> bytes:
    """A model without a shape, with the digest as its note."""
    scene = json.dumps({"asset": {"version": "2.0"}, "extras": {"note": digest.hex()}}).encode()
    scene += b" " * (-len(scene) % 4)
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(scene), len(scene), 0x4E4F534A) + scene


_MAKERS: dict[str, Callable[[bytes], bytes]] = {
    "png": _png,
    "jpeg": _jpeg,
    "webp": _webp,
    "mp3": _mp3,
    "wav": _wav,
    "glb": _glb,
}
