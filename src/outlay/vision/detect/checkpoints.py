"""Detectors in files: the authors' checkpoints, folders of the hub, and folders of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from outlay.errors import FailureError, UsageError, nearest
from outlay.models.hub import shipped
from outlay.vision import names, weights
from outlay.vision.detect.deimv2 import Detector, channels_last
from outlay.vision.detect.sizes import SIZES, Size, ViTSize

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KIND = "outlay detector"
DROPPED = ("decoder.anchors", "decoder.valid_mask", "decoder.decoder.up", "decoder.decoder.reg_scale")
"""What the authors' files hold beside weights: tables for one size of picture, and two numbers a second time."""
EMA = "ema"
"""Where the authors' training keeps the moving average of the weights, which is what is evaluated."""
COCO = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign "
    "parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie "
    "suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard "
    "tennis_racket bottle wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot "
    "hot_dog pizza donut cake chair couch potted_plant bed dining_table toilet tv laptop mouse remote keyboard "
    "cell_phone microwave oven toaster sink refrigerator book clock vase scissors teddy_bear hair_drier "
    "toothbrush"
)
COCO_NAMES = tuple(name.replace("_", " ") for name in COCO.split())


@dataclass(frozen=True)
class Loaded:
    """A detector with the names of its classes."""

    detector: Detector
    names: tuple[str, ...]
    """Of the classes."""
    side: int
    """Pixels a side that pictures are resized to."""

    def deployed(self) -> Loaded:
        """Returns it for inference; see `Detector.deploy`. Training and files take it as it was loaded."""
        return replace(self, detector=self.detector.deploy())


def load(path: str | Path, labels: Sequence[str] | None = None) -> Loaded:
    """Returns a detector of a file or folder, in evaluation mode.

    Args:
        path: The authors' .pth (whose averaged weights are taken), a .safetensors file, a folder of the hub
            (config.json, model.safetensors) or one that `outlay vision train` wrote.
        labels: The names of the classes; by default those of the configuration, COCO's where there are 80.

    Raises:
        UsageError: For what is no DEIMv2, in one line.
    """
    path = _found(path)
    config: Mapping[str, Any] = {}
    if path.is_dir():
        config = _config(path)
        found = weights.read(path / WEIGHTS)
    else:
        found = averaged(path)
    detector = detector_of(found, str(path), config)
    channels_last(detector)
    side = config.get("side") or _side(config) or detector.size.side
    return Loaded(detector.eval(), _names(config, detector.size.classes, labels), int(side))


def _found(path: str | Path) -> Path:
    """Returns the file or folder of a detector, which may come with the package."""
    known = shipped(KIND)
    if str(path) in known:
        return known[str(path)]
    if not Path(path).exists():
        raise UsageError(
            f"there is no detector {path}{nearest(str(path), known)}; give a file, a folder, or {', '.join(known)}"
        )
    return Path(path)


def averaged(path: Path) -> dict[str, Tensor]:
    """Returns the weights of a file, the averaged ones where it has them."""
    return weights.read(path, (EMA, "module"))


def detector_of(found: Mapping[str, Tensor], where: str, config: Mapping[str, Any] | None = None) -> Detector:
    """Returns the detector that has these weights.

    Args:
        found: Weights with the authors' names, or ours.
        where: What they come from, for errors.
        config: What a folder of ours says of its sizes.

    Raises:
        UsageError: Where they are no DEIMv2, or don't fit.
    """
    size = _size(found, where)
    queries = (config or {}).get("queries")
    detector = Detector(replace(size, queries=int(queries)) if queries else size)
    given = {name: tensor for name, tensor in found.items() if name not in DROPPED}
    if not isinstance(size.backbone, ViTSize):
        given = _backbone_names(given, str(size.backbone), where)
    given = _aliases(given, size)
    if not any(name.startswith("decoder.denoising") for name in given):
        detector.decoder.denoising_class_embed = None
    weights.put(detector, given, where)
    return detector


def save(folder: Path, loaded: Loaded, *, half: bool = False, facts: Mapping[str, Any] | None = None) -> None:
    """Writes a folder that `load` reads. Nothing half-written has the final name.

    Args:
        folder: Where it goes.
        loaded: The detector.
        half: Whether matrices and kernels are kept in half precision; biases and statistics stay as they are.
        facts: What is written beside, such as how it was trained.
    """
    size = loaded.detector.size
    config = {
        "kind": KIND,
        "size": size.name,
        "queries": size.queries,
        "side": loaded.side,
        "names": list(loaded.names),
        **(facts or {}),
    }
    state = {
        name: (tensor.half() if half and tensor.ndim > 1 else tensor).detach().clone().contiguous()
        for name, tensor in loaded.detector.state_dict().items()
        if not _repeated(name, size)
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{WEIGHTS}.part"
        save_file(state, part)
        part.replace(folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    except OSError as error:
        raise FailureError(f"can't write {folder}: {error.strerror}") from error


def _repeated(name: str, size: Size) -> bool:
    """Tells whether a weight is another layer's as well, and written there."""
    return size.shared_box_head and name.startswith("decoder.dec_bbox_head.") and name.split(".")[2] != "0"


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError):
        raise UsageError(f"{folder} is no folder of a detector: its {CONFIG} can't be read") from None
    if not isinstance(config, dict):
        raise UsageError(f"{folder / CONFIG} describes no detector")
    return config


def _side(config: Mapping[str, Any]) -> int | None:
    """Returns the size of pictures in a configuration of the hub."""
    told = config.get("eval_spatial_size") or (config.get("DEIMTransformer") or {}).get("eval_spatial_size")
    return int(told[0]) if isinstance(told, list) and told else None


def _names(config: Mapping[str, Any], classes: int, labels: Sequence[str] | None) -> tuple[str, ...]:
    told = config.get("names") or (config.get("id2label") or {}).values()
    found = tuple(labels or told or (COCO_NAMES if classes == len(COCO_NAMES) else map(str, range(classes))))
    if len(found) != classes:
        raise UsageError(f"the detector has {classes} classes, and there are {len(found)} names")
    return found


def _size(found: Mapping[str, Tensor], where: str) -> Size:
    """Returns the sizes that weights tell: width, layers, backbone, classes."""
    score = found.get("decoder.enc_score_head.weight")
    if score is None:
        raise UsageError(f"{where} holds no DEIMv2: it lacks decoder.enc_score_head.weight")
    classes, width = score.shape
    vit = any(name.startswith("backbone.dinov3.") for name in found)
    gateway = any(".gateway." in name for name in found)
    layers = len({name.split(".")[3] for name in found if name.startswith("decoder.decoder.layers.")})
    for size in SIZES.values():
        if (size.width, size.layers, size.gateway, isinstance(size.backbone, ViTSize)) == (width, layers, gateway, vit):
            return replace(size, classes=classes)
    known = ", ".join(f"{size.name} {size.width}" for size in SIZES.values())
    raise UsageError(f"{where} has {width} features, and DEIMv2's sizes have: {known}")


def _backbone_names(given: Mapping[str, Tensor], design: str, where: str) -> dict[str, Tensor]:
    """Returns weights with HGNetv2's part under our names."""
    prefix, ours = "backbone.", "backbone.net."
    if any(name.startswith(ours) for name in given):
        return dict(given)
    part = {name.removeprefix(prefix): tensor for name, tensor in given.items() if name.startswith(prefix)}
    renamed = names.ours(part, design, where)
    rest = {name: tensor for name, tensor in given.items() if not name.startswith(prefix)}
    return rest | {ours + name: tensor for name, tensor in renamed.items()}


def _aliases(given: dict[str, Tensor], size: Size) -> dict[str, Tensor]:
    """Returns weights with a shared head under the name of every layer; files may hold it once."""
    if size.shared_box_head:
        first = "decoder.dec_bbox_head.0."
        for name in [each for each in given if each.startswith(first)]:
            for layer in range(1, size.layers):
                given.setdefault(name.replace(first, f"decoder.dec_bbox_head.{layer}."), given[name])
    return given
