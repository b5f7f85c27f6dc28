"""What compresses with a circuit in a file: one of arrays, or one of patches of pictures."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from outlay.codec.circuit.arrays import CircuitCoder
from outlay.codec.circuit.latent_tree import LatentTree
from outlay.codec.circuit.patches import PatchCoder
from outlay.codec.coder import Stream
from outlay.errors import UsageError

PHOTOS = "photos"
"""The circuit of patches that comes with the package, and what files call it."""


def coder_of(name: str | Path | None, *, stream: Stream = "batch", pixels: bool = False) -> CircuitCoder | PatchCoder:
    """Returns the coder of a circuit.

    Args:
        name: A file that `outlay train circuit` wrote; None: the circuit for photos.
        stream: Of a circuit of arrays: whether each sample has a stream of its own.
        pixels: Whether the pixels of a PNG are enough.

    Raises:
        UsageError: Where the file holds no circuit, or one of arrays where pixels are to be compressed.
    """
    if name is None or name == PHOTOS:
        path, label = Path(str(files("outlay.models") / "shipped" / f"{PHOTOS}.safetensors")), PHOTOS
    else:
        path = Path(name)
        label = path.name
    circuit = LatentTree.load(path)
    if LatentTree.about(path).get("patches"):
        return PatchCoder(circuit, label, pixels=pixels)
    if pixels:
        raise UsageError(f"--pixels takes a circuit of patches, and {label} is one of arrays")
    return CircuitCoder(circuit, label, stream=stream)
