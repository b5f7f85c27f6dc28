"""Pictures compressed with loss by learned codecs, their channels ordered by ISCS.

from outlay.codec import lic
from outlay.pictures import read_picture

codec = lic.load("codec/")  # or a state dict of CompressAI
ordered = codec.reordered(lic.ISCS(score="prior", slices=4)).fitted(pictures)
coder = lic.PictureCoder(ordered, "mine", channels=0.75)
file = coder.compress(torch.from_numpy(read_picture("photo.png"))).container.pack()
"""

from __future__ import annotations

from outlay.codec.lic.iscs import ISCS, Layout, channel_scores
from outlay.codec.lic.networks import ARCHITECTURES, Codec, Form
from outlay.codec.lic.picture_codec import PictureCodec, load
from outlay.codec.lic.pictures import PictureCoder

__all__ = [
    "ARCHITECTURES",
    "ISCS",
    "Codec",
    "Form",
    "Layout",
    "PictureCodec",
    "PictureCoder",
    "channel_scores",
    "load",
]
