"""Object detection: DEIMv2.

from outlay.vision import detect

model = detect.load("deimv2_hgnetv2_n_coco.pth").deployed()
for found in detect.detect(model, ["street.jpg"], threshold=0.4, layers=2):
    print(found.as_rows())
"""

from __future__ import annotations

from outlay.vision.detect.checkpoints import Loaded, load, save
from outlay.vision.detect.deimv2 import DEIMv2, Detector
from outlay.vision.detect.detections import Detections, Effort, chosen_effort, cost_of, detect
from outlay.vision.detect.drawing import draw
from outlay.vision.detect.sizes import SIZES, Size, size_of

__all__ = [
    "SIZES",
    "DEIMv2",
    "Detections",
    "Detector",
    "Effort",
    "Loaded",
    "Size",
    "chosen_effort",
    "cost_of",
    "detect",
    "draw",
    "load",
    "save",
    "size_of",
]
