"""Loads a folder in the hub's layout as a network of `transformers`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from outlay.errors import UsageError
from outlay.models.build import Progress
from outlay.models.config import FAMILIES
from outlay.models.linear import FLOATS
from outlay.models.via_transformers import attention
from outlay.models.via_transformers.decoder import TransformersDecoder
from outlay.models.via_transformers.families import other_memory, refuse_other_memory
from outlay.models.via_transformers.probe import examine, own_attention
from outlay.models.via_transformers.weights import count_costs, pack_linears


def network_class(raw: dict[str, Any]) -> Any:
    """Returns the class of `transformers` for the network that a `config.json` describes.

    Raises:
        UsageError: if `transformers` is not installed or does not know the family, or if attention is not the network's
            only memory.
    """
    family = _family(raw)
    refuse_other_memory(raw)
    try:
        import transformers
    except ImportError:
        raise UsageError(
            f"architecture {family!r} is not one that outlay runs natively ({', '.join(FAMILIES)}); it may run through "
            "transformers: pip install 'outlay[transformers]'"
        ) from None
    mapping = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if family not in mapping:
        raise UsageError(
            f"architecture {family!r} is not one that outlay runs natively ({', '.join(FAMILIES)}), and "
            f"transformers {transformers.__version__} knows no causal language model of that name"
        )
    names = mapping[family]
    kind = getattr(transformers, names if isinstance(names, str) else names[0])
    if kind._is_stateful:
        raise other_memory(family, "recurrent or convolutional states")
    return kind


def _family(raw: dict[str, Any]) -> str:
    return raw.get("model_type") or ", ".join(raw.get("architectures") or ()) or "none named"


def load_decoder(
    kind: Any, folder: Path, raw: dict[str, Any], format: str, device: torch.device, progress: Progress | None = None
) -> TransformersDecoder:
    """Loads a network.

    Args:
        kind: its class, from `network_class`.
        folder: the model's folder.
        raw: its `config.json`.
        format: how the weights of linear layers are held: one of `linear.FORMATS`.
        device: where the network runs.
        progress: told of layers.

    Raises:
        UsageError: if weights are missing, or if attention can't be given ours.
    """
    import transformers

    attention.register()
    dtype = torch.float32 if device.type == "cpu" else FLOATS.get(format, torch.bfloat16)
    with _quiet(transformers):
        network = _load(kind, folder, _family(raw))
    network = network.eval().requires_grad_(False)
    pack_linears(network, format, device, progress)
    network = network.to(device=device, dtype=dtype)
    options = network.config.get_text_config(decoder=True)
    return examine(network, options, count_costs(network, options), dtype, device)


def _load(kind: Any, folder: Path, family: str) -> Any:
    try:
        network, report = kind.from_pretrained(
            folder,
            dtype="auto",
            attn_implementation=attention.NAME,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except KeyError as error:
        raise own_attention(family) from error  # it looked its own classes of attention up by our name
    except (OSError, ValueError, RuntimeError, AttributeError, ImportError) as error:
        why = " ".join(str(error).split())
        raise UsageError(f"transformers cannot load this {family}: {why}") from error
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise UsageError(f"the model's files lack the tensor {missing[0]}")
    return network


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keeps `transformers` from writing to the terminal."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
