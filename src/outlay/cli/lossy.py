"""`outlay compress --lossy`: pictures through a learned codec."""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.cli import terminal
from outlay.cli.outputs import Output, check_outputs, read_input, sources
from outlay.errors import FailureError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from outlay.codec.container import Container
    from outlay.codec.files import Written
    from outlay.codec.lic import PictureCoder

SUFFIX = ".png.olz"  # they come back as PNG


def compress_pictures(args: argparse.Namespace) -> int:
    """Compresses the pictures that the arguments name; returns the exit status."""
    for name in ("model", "block"):
        if getattr(args, name) is not None:
            raise UsageError(f"--{name} is not for pictures with loss; leave it out with --lossy")
    if args.rm:
        raise UsageError("--rm deletes what can be made again, and --lossy gives no picture back exactly")
    from outlay.lm import set_threads

    set_threads(args.threads)
    found = sources(args.files, skip=".olz")
    outputs = [Output.beside(each, args.out, len(found), Path(each.name).stem + SUFFIX) for each in found]
    check_outputs(outputs, force=args.force, remove=False)
    with terminal.Progress(quiet=args.quiet) as progress:
        progress("starting", 0, 0)
        import torch

        from outlay.pictures import read_picture

        coder = picture_coder(args.lossy, channels=args.channels)
        for place, output in enumerate(outputs):
            started = time.perf_counter()
            try:
                picture = torch.from_numpy(read_picture(read_input(output.source)))
            except UsageError as error:
                raise UsageError(str(error).replace("the picture", output.source.label, 1)) from None
            written = coder.compress(picture)
            shown = _decoded(coder, written.container)
            output.write(written.container.pack())
            progress("compressing", place + 1, len(outputs))
            _tell(output, picture, shown, written, coder, time.perf_counter() - started, args)
    return 0


def picture_coder(path: str, *, channels: float | None = None, workers: int = 1) -> PictureCoder:
    """Returns the coder of a codec in a file or folder."""
    from outlay.codec.lic import PictureCoder, load

    sent = int(channels) if channels is not None and channels >= 1 else channels
    return PictureCoder(load(path), Path(path).name, channels=sent, workers=workers)


def png(picture: Tensor) -> bytes:
    """Returns a picture, uint8 [height, width, 3], as the bytes of a PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture.numpy()).save(file, "PNG")
    return file.getvalue()


def _decoded(coder: PictureCoder, container: Container) -> Tensor:
    """Returns the picture that a file gives, which is decoded as a reader does."""
    from outlay.codec.container import unpack
    from outlay.codec.files import decompress_all, whole

    ((_, packed, decoded),) = decompress_all([(0, unpack(container.pack()))], coder)
    try:
        whole(packed, decoded)
    except FailureError as error:
        raise FailureError(f"what was compressed does not give its latents back: {error}") from None
    return coder.render(packed, decoded)


def _tell(
    output: Output, picture: Tensor, shown: Tensor, written: Written, coder: PictureCoder, seconds: float,
    args: argparse.Namespace,
) -> None:  # fmt: skip
    from outlay.codec.lic.iscs import psnr

    (height, width), size = picture.shape[:2], len(written.container.pack())
    bits, decibels = 8 * size / (height * width), psnr(shown.float() / 255, picture.float() / 255)
    every = coder.codec.codec.form.latents
    if args.json:
        row = {"file": output.source.label, "out": output.label, "width": width, "height": height, "bytes_out": size,
               "bits_per_pixel": bits, "psnr": decibels, "channels": coder.channels, "of_channels": every,
               "ideal_bits": written.ideal_bits, "seconds": round(seconds, 3)}  # fmt: skip
        print(json.dumps(row), file=sys.stderr if output.to_stdout else sys.stdout)
    elif not args.quiet:
        what = f"{width} x {height}, {coder.channels} of {every} channels"
        print(f"{output.source.label}: {what} -> {size:,} bytes, {bits:.2f} bits a pixel, {decibels:.1f} dB",
              file=sys.stderr)  # fmt: skip
