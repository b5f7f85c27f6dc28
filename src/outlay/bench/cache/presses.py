"""kvpress on the same texts, in an interpreter of its own: it needs a `transformers` before 5.3.

Run by the suite as a script: it reads what to do as JSON from standard input and writes what it found to standard
output.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

PRESSES = ("SnapKVPress", "ExpectedAttentionPress", "KnormPress", "ObservedAttentionPress")


def main() -> None:
    """Measures the dense cache and each press."""
    asked = json.load(sys.stdin)
    os.environ |= {
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
    }
    import kvpress  # type: ignore[import-not-found,unused-ignore]
    import torch
    import transformers

    torch.set_num_threads(1)
    folder, options = asked["model"], {"dtype": torch.float32, "attn_implementation": "eager"}
    if os.path.isfile(folder):
        folder, options["gguf_file"] = os.path.split(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    found: dict[str, Any] = {"transformers": transformers.__version__, "nats": {}}
    for name in (None, *PRESSES):
        try:
            press = None if name is None else getattr(kvpress, name)(compression_ratio=1 - asked["share"])
            nats = [score(model, press, text, asked["prompt"]) for text in asked["texts"]]
        except Exception as error:  # told in the report
            found["nats"][name or "dense"] = f"{type(error).__name__}: {error}"
        else:
            found["nats"][name or "dense"] = nats
    json.dump(found, sys.stdout)


def score(model: Any, press: Any, tokens: list[int], prompt: int) -> float:
    """Returns the nats a token of what follows a prompt whose cache a press has compressed."""
    from contextlib import nullcontext

    import torch
    from transformers import DynamicCache

    with torch.inference_mode():
        cache, ids = DynamicCache(), torch.tensor([tokens])
        with nullcontext() if press is None else press(model):
            first = model(ids[:, :prompt], past_key_values=cache, use_cache=True).logits[0, -1:]
        positions = torch.arange(prompt, len(tokens) - 1)
        rest = model(ids[:, prompt:-1], past_key_values=cache, position_ids=positions[None]).logits[0]
        logprobs = torch.cat([first, rest]).float().log_softmax(-1)
        return -float(logprobs.gather(1, ids[0, prompt:, None]).double().mean())


if __name__ == "__main__":
    main()
