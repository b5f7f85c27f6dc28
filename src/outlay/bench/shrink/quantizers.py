"""Quantizers of other projects: a script that one process runs for one of them, as `quantizers.py JOB`.

JOB is JSON: the `peer`, its `options`, the `model`, the same in `floats` (a folder in the hub's layout), the token ids
of a `calibration`, and the folder `out`, which is there. What a peer makes of the model lies there afterwards, as one
.gguf file or a folder that is read like any other. The last line printed is JSON: the peer's `version`, and the `bytes`
of the matrices of all layers and how many `weights` they have, where the files don't tell.

Nothing of outlay is imported: a peer may need a Python of its own, with other versions of what outlay needs.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LM_HEAD = "lm_head"  # it stays as it is, by all of them
BATCH = 8  # sequences of a step, auto-round's default


def llama_cpp(job: Mapping[str, Any]) -> dict[str, Any]:
    """llama.cpp's own types, from the .gguf file: `type=Q3_K_S`."""
    source, target = _gguf_files(job)
    llama = import_module("llama_cpp")
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{job['options']['type']}"), True
    params.nthread = torch.get_num_threads()
    if llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        raise SystemExit(f"llama_model_quantize failed for {job['options']['type']}")
    return {"version": f"llama-cpp-python {version('llama-cpp-python')}"}


def ik_llama_cpp(job: Mapping[str, Any]) -> dict[str, Any]:
    """The same types by the fork of their author: `type=Q3_K_S`."""
    program = import_module("ik_llama_cpp.quantize").find_quantize_bin()
    files, threads = _gguf_files(job), str(torch.get_num_threads())
    command = [str(program), "--allow-requantize", *files, job["options"]["type"], threads]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise SystemExit(f"llama-quantize ended with status {done.returncode}: {done.stderr.strip()[-200:]}")
    return {"version": f"ik-llama-cpp-python {version('ik-llama-cpp-python')}"}


def _gguf_files(job: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the .gguf file to read and the one to write."""
    if not job["model"].endswith(".gguf"):
        raise SystemExit("llama.cpp reads .gguf files only")
    out = Path(job["out"])
    return job["model"], str(out / f"{out.name.removesuffix('.part')}.gguf")


def hqq(job: Mapping[str, Any]) -> dict[str, Any]:
    """Half-quadratic quantization: `bits=3,group=64`. Needs no calibration."""
    quantize, options = import_module("hqq.core.quantize"), job["options"]
    config = quantize.BaseQuantizeConfig(nbits=options["bits"], group_size=options["group"])
    weights, total = {}, 0
    for name, layer in _linears(_model(job, torch.float16)):
        coded = quantize.HQQLinear(layer, config, compute_dtype=torch.float16, device="cpu", del_orig=False)
        stored = [coded.W_q, *(each for each in coded.meta.values() if isinstance(each, torch.Tensor))]
        total += sum(each.nbytes for each in stored)
        weights[name] = coded.dequantize()
    return _written(job, weights, "hqq", total)


def quanto(job: Mapping[str, Any]) -> dict[str, Any]:
    """Rounding between the least and the greatest of groups of 128 or less: `bits=2` or 4. Needs no calibration."""
    package = import_module("optimum.quanto")
    model = _model(job, torch.float16)
    package.quantize(model, weights=getattr(package, f"qint{job['options']['bits']}"), exclude=LM_HEAD)
    package.freeze(model)
    weights, total = {}, 0
    for name, layer in model.named_modules():
        if isinstance(layer, package.QLinear):
            coded = layer.weight
            total += sum(each.nbytes for each in (coded._data._data, coded._scale, coded._shift))
            weights[name] = coded.dequantize()
    return _written(job, weights, "optimum-quanto", total)


def auto_round(job: Mapping[str, Any]) -> dict[str, Any]:
    """Signed gradient descent on roundings, block by block: `bits=3,group=64,iters=200`. Writes GPTQ's form."""
    options, out = job["options"], Path(job["out"])
    rows = _rows(job["calibration"], options["length"])
    tokenizer = import_module("transformers").AutoTokenizer.from_pretrained(job["floats"])
    batches = [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in rows.split(BATCH)]
    maker = import_module("auto_round").AutoRound(
        _model(job, torch.float32), tokenizer, scheme=f"W{options['bits']}A16", group_size=options["group"], sym=False,
        iters=options["iters"], nsamples=len(rows), seqlen=options["length"], batch_size=min(BATCH, len(rows)),
        dataset=batches, device_map="cpu",
    )  # fmt: skip
    maker.quantize_and_save(str(out), format="auto_gptq")
    for inner in [each for each in out.iterdir() if each.is_dir()]:  # it names a folder inside by itself
        for file in inner.iterdir():
            file.replace(out / file.name)
        inner.rmdir()
    for file in Path(job["floats"]).glob("tokenizer*.json"):
        shutil.copyfile(file, out / file.name)
    return {"version": f"auto-round {version('auto-round')}"}


def llmcompressor(job: Mapping[str, Any]) -> dict[str, Any]:
    """Its GPTQ: `bits=3,group=64`."""
    options = job["options"]
    package, datasets = import_module("llmcompressor"), import_module("datasets")
    modifier = import_module("llmcompressor.modifiers.gptq").GPTQModifier
    grid = {"num_bits": options["bits"], "type": "int", "symmetric": False, "strategy": "group",
            "group_size": options["group"]}  # fmt: skip
    recipe = modifier(config_groups={"all": {"targets": ["Linear"], "weights": grid}}, ignore=[LM_HEAD])
    sequences = job["calibration"]
    calibration = datasets.Dataset.from_list(
        [{"input_ids": each, "attention_mask": [1] * len(each)} for each in sequences]
    )
    model = _model(job, torch.float32)
    package.oneshot(
        model=model, dataset=calibration, recipe=recipe, num_calibration_samples=len(sequences),
        max_seq_length=max(map(len, sequences)), shuffle_calibration_samples=False,
    )  # fmt: skip
    each_word = 32 // options["bits"]  # integers of an int32 in its packed form
    weights, total = {}, 0
    for name, layer in _linears(model):
        outputs, inputs = layer.weight.shape
        groups = inputs // options["group"]
        total += 4 * (outputs * -(-inputs // each_word) + -(-outputs // each_word) * groups) + 2 * outputs * groups
        weights[name] = layer.weight.detach()
    return _written(job, weights, "llmcompressor", total)


def _model(job: Mapping[str, Any], dtype: torch.dtype) -> Any:
    return import_module("transformers").AutoModelForCausalLM.from_pretrained(job["floats"], dtype=dtype).eval()


def _linears(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Linear]]:
    """Yields the linear layers by name, all but the LM head."""
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != LM_HEAD:
            yield name, layer


def _rows(sequences: list[list[int]], length: int) -> torch.Tensor:
    """Returns the tokens of all sequences one after the other in rows of a length, what is over left out."""
    tokens = torch.tensor([token for each in sequences for token in each])
    return tokens[: len(tokens) // length * length].view(-1, length)


def _written(
    job: Mapping[str, Any], weights: Mapping[str, torch.Tensor], distribution: str, total: int
) -> dict[str, Any]:
    """Writes the model with the weights that a peer's matrices stand for, all else as it was.

    Args:
        job: What was asked.
        weights: The weights by module.
        distribution: The peer's package.
        total: Bytes of its matrices, as it holds them.
    """
    files = import_module("safetensors.torch")
    floats, out = Path(job["floats"]), Path(job["out"])
    tensors = files.load_file(floats / "model.safetensors")
    for name, weight in weights.items():
        assert tensors[f"{name}.weight"].shape == weight.shape
        tensors[f"{name}.weight"] = weight.float().contiguous()
    files.save_file(tensors, out / "model.safetensors", {"format": "pt"})
    for file in floats.glob("*.json"):
        shutil.copyfile(file, out / file.name)
    counted = sum(weight.numel() for weight in weights.values())
    return {"version": f"{distribution} {version(distribution)}", "bytes": total, "weights": counted}


PEERS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "llama.cpp": llama_cpp,
    "ik_llama.cpp": ik_llama_cpp,
    "hqq": hqq,
    "quanto": quanto,
    "auto-round": auto_round,
    "llmcompressor": llmcompressor,
}

if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    print("\n" + json.dumps(PEERS[asked["peer"]](asked)), flush=True)
