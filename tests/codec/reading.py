"""Files of a model although xz would do better: what these tests read and damage."""

from __future__ import annotations

from pathlib import Path

from outlay.codec.container import unpack
from outlay.codec.files import decompress_all, open_text, whole

ARCHIVES = Path(__file__).parent / "archives"
ANY = 1 << 40  # bytes: more than any file has


def forced(data, model, **how):
    """The file that a language model makes of some bytes."""
    coder = open_text(model, **how)
    with coder.codec:
        ((_, written),) = coder.write(iter([(0, data, ANY)]), lambda amount: None)
    return written.container.pack()


def read(packed, model, **how):
    """What a file decodes to."""
    container = unpack(packed)
    coder = open_text(model, container, **how)
    with coder.codec:
        ((_, _, decoded),) = decompress_all([(0, container)], coder)
    return whole(container, decoded)
