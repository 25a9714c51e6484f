"""The images that the simulator generates: small PNGs of one colour. Knows no HTTP."""

from __future__ import annotations

import hashlib
import struct
import zlib

#: Width and height, in pixels.
SIDE = 64


def make_image(prompt: str) -> tuple[bytes, int]:
    """Return a PNG and its seed. Both depend on the prompt alone."""
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
    row = b"\x00" + digest[:3] * SIDE
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * SIDE)),
        (b"IEND", b""),
    )
    png = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        png += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png, int.from_bytes(digest[3:7], "big")
