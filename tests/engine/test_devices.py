"""Passes on another device than the CPU, as far as can be seen without one: shapes, dtypes, where tensors lie."""

from __future__ import annotations

import pytest
import torch

from outlay.engine.passes import LayeredPass, pass_for
from outlay.testing import tiny_model
from outlay.tree.cache import Cache
from outlay.tree.plan import plan_pass
from outlay.tree.token_tree import Tree


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_pass_over_a_tree_stays_on_its_device(dtype, device):
    model = tiny_model(device=device, dtype=dtype)
    cache = Cache(model.decoder.config, model.decoder.kv_dtype, model.decoder.device, limit=256)
    run = pass_for(model.decoder, cache)
    assert isinstance(run, LayeredPass), "the native kernels are for the CPU"
    tree = Tree(cache)
    tree.append([1, 2, 3, 4])
    twin = tree.fork()
    drafted = tree.extend([tree.tip, tree.tip, tree.tip], [5, 6, 7])
    twin.append([8])
    groups = [(tree, [*tree.tip.path(), *drafted]), (twin, [twin.tip])]
    plan = plan_pass(groups, torch.from_numpy(cache.positions), model.decoder.config.windows)
    logits = run(plan, [3, 4, 7])
    assert logits.shape == (3, 257)
    assert logits.dtype == torch.float32
    assert logits.device.type == device
    assert str(cache.keys[0].dtype) == f"torch.{dtype}"


@pytest.mark.gpu
def test_a_gpu_writes_what_the_cpu_writes():
    from outlay import LM
    from outlay.engine.engine import Engine

    prompts = ["The first", "A second prompt, which is longer", "3"]
    texts = [
        [result.tokens for result in LM(tiny_model(device=device), Engine()).generate_batch(prompts, max_tokens=24)]
        for device in ("cpu", "cuda")
    ]
    assert texts[0] == texts[1]
