"""The spine of `outlay shrink`: moments, error feedback, stored forms, folders that load, and runs that go on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

import outlay
from outlay import cli, kernels, shrink
from outlay.engine.engine import Engine
from outlay.engine.passes import runs_whole
from outlay.errors import UsageError
from outlay.kernels.bits import pack_bits, to_bytes, to_words, unpack_bits
from outlay.lm import LM
from outlay.models import hub
from outlay.models.checkpoint import Checkpoint, read_json
from outlay.models.forms import form_of
from outlay.models.forms.gptq import GptqForm, gptq_tensors
from outlay.models.linear import pack, weight_of
from outlay.models.load import load_model, open_model
from outlay.prompt_logits import logits_from
from outlay.shrink.calibration import Hidden
from outlay.shrink.catalog import make, shrinkers
from outlay.shrink.feedback import damped, inverse_factor, proxy_error, walk
from outlay.shrink.gptq import GPTQ
from outlay.shrink.grid import rounded
from outlay.shrink.rtn import RTN
from outlay.shrink.shrinker import Moment
from outlay.shrink.source import Source
from outlay.train import corpus

REASONER = "outlay/tiny-reasoner"
TEXTS = [[token % 500 for token in range(start, start + 40)] for start in range(0, 400, 40)]


def moment(inputs, seed=0, rows=400):
    """Second moments of correlated inputs, some of which are much larger than others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator).cumsum(1) * torch.rand(inputs, generator=generator).exp()
    return Moment((x.double().T @ x.double()) / rows, rows, "a test")


def matrix(outputs, inputs, seed=1):
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The tiny reasoner in 4 bits."""
    out = tmp_path_factory.mktemp("shrunk") / "four"
    shrink.run(REASONER, "gptq:bits=4", out, calib=TEXTS)
    return out


@dataclass
class Rounds:
    """A quantizer that rounds to whole numbers."""

    columns: int = 1
    group: int = 1

    def quantize(self, ahead, places, factor):
        return ahead[:, : self.columns].round()


def test_feedback_is_that_of_the_inverse_itself():
    """Against Optimal Brain Quantization in its plain form, which eliminates one input after the other."""
    weight, h = 3 * matrix(6, 24), damped(moment(24).h, 0.01)
    current, inverse = weight.double(), torch.linalg.inv(h)
    expected = torch.empty_like(current)
    for j in range(24):
        expected[:, j] = current[:, j].round()
        error = (current[:, j] - expected[:, j]) / inverse[j, j]
        current -= error[:, None] * inverse[j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    found = walk(weight, inverse_factor(h), Rounds())
    assert (found.weight == expected.float()).float().mean() > 0.98  # ties may fall the other way in float32


@pytest.mark.parametrize("columns", [1, 4])
def test_equal_uncorrelated_inputs_change_nothing(columns):
    weight, factor = 3 * matrix(6, 24), inverse_factor(7.0 * torch.eye(24, dtype=torch.float64))
    assert torch.equal(walk(weight, factor, Rounds(columns)).weight, weight.round())


def test_feedback_in_several_columns_lowers_the_error_too():
    weight, each = 3 * matrix(32, 64), moment(64)
    factor = inverse_factor(damped(each.h, 0.01))
    plain = proxy_error(weight, weight.round(), each.h)
    for columns in (1, 2, 16):
        assert proxy_error(weight, walk(weight, factor, Rounds(columns)).weight, each.h) < 0.7 * plain


def test_an_order_of_columns_is_that_of_a_matrix_that_has_them_so():
    weight, h = 3 * matrix(6, 24), damped(moment(24).h, 0.01)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    factor = inverse_factor(h[order][:, order])
    found, other = walk(weight, factor, Rounds(), order), walk(weight[:, order], factor, Rounds())
    assert torch.equal(found.weight[:, order], other.weight)
    assert torch.equal(found.adjusted[:, order], other.adjusted)


def test_moments_that_are_not_positive_are_refused_by_name():
    with pytest.raises(UsageError, match="inputs of layer 3 are not positive"):
        inverse_factor(torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64), "layer 3")


@pytest.mark.parametrize("options", [{"bits": 2}, {"bits": 3, "act_order": True}, {"bits": 4, "symmetric": True}])
def test_gptq_errs_less_than_rounding(options):
    weight, each = matrix(64, 128), moment(128)
    found = GPTQ(group=32, **options).shrink(weight, each, "a layer")
    assert proxy_error(weight, found.weight, each.h) < 0.5 * proxy_error(weight, found.unfed, each.h)


def test_gptq_of_equal_uncorrelated_inputs_is_rounding():
    weight, each = matrix(64, 128), Moment(2 * torch.eye(128, dtype=torch.float64), 1, "a test")
    for order in (False, True):
        found = GPTQ(bits=3, group=32, act_order=order).shrink(weight, each, "a layer")
        assert torch.equal(found.weight, rounded(weight, 3, 32, False)[2])


def test_an_input_that_is_always_zero_has_no_weight():
    each = moment(64)
    each.h[5], each.h[:, 5] = 0, 0
    found = GPTQ(bits=4, group=32).shrink(matrix(32, 64), each, "a layer")
    assert found.weight[:, 5].abs().max() <= found.weight.abs().max() / 15
    assert found.weight.isfinite().all()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 7, 8, 11, 12, 16, 20, 31, 32, 48, 63])
@pytest.mark.parametrize("n", [1, 31, 33, 96])
def test_packed_bits_unpack(bits, n):
    values = torch.randint(0, 2**bits - 1 if bits < 63 else 2**62, (3, n)) | (torch.arange(n) == 0) * (2**bits - 1)
    packed = pack_bits(values, bits)
    assert packed.shape == (3, -(-n * bits // 8))
    assert torch.equal(unpack_bits(packed, bits, n), values)
    assert torch.equal(unpack_bits(to_bytes(to_words(packed)), bits, n), values)
    stream = int.from_bytes(bytes(packed[1].tolist()), "little")  # the lowest bits first
    assert [(stream >> bits * i) % 2**bits for i in range(n)] == values[1].tolist()


class Tensors(dict):
    def shape(self, name):
        return tuple(self[name].shape) if name in self else None

    def tensor(self, name):
        return self[name]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shuffled", [False, True])
def test_gptqs_form_is_read_as_its_kernels_define_it(bits, shuffled):
    """Against the definition: integer j of a column lies in bits [j * bits, (j + 1) * bits) of the column's words."""
    generator = torch.Generator().manual_seed(bits)
    q = torch.randint(0, 2**bits, (32, 64), generator=generator)
    scales, zeros = torch.rand(32, 2, generator=generator).half(), torch.randint(1, 2**bits, (32, 2))
    groups = torch.arange(64) // 32
    groups = groups[torch.randperm(64, generator=generator)] if shuffled else groups
    tensors = gptq_tensors(q, scales, zeros, groups, bits)
    words = tensors["qweight"].long() & 0xFFFFFFFF
    stream = sum(int(word) << 32 * i for i, word in enumerate(words[:, 7]))
    assert [(stream >> bits * j) % 2**bits for j in range(64)] == q[7].tolist()
    stored = Tensors({f"m.{name}": tensor for name, tensor in tensors.items()})
    found = GptqForm({"bits": bits, "group_size": 32}).matrix("m", stored)
    expected = scales.float()[:, groups] * (q - zeros[:, groups])
    assert torch.equal(found.dequantize(), expected)
    assert torch.equal(found.take(torch.tensor([9, 2])).dequantize(), expected[[9, 2]])
    plain = found.plain().dequantize()
    step = scales.float()[:, groups]
    limit = 2**-10 * 2**bits if bits <= 4 and not shuffled else 2**bits / 254 + 0.01
    assert ((plain - expected).abs() <= limit * step.amax() + 1e-6).all()


def test_a_wrong_group_is_refused_by_name():
    tensors = gptq_tensors(torch.ones(32, 64).long(), torch.ones(32, 2), torch.ones(32, 2).long(), torch.zeros(64), 4)
    tensors["g_idx"][3] = 2
    stored = Tensors({f"m.{name}": tensor for name, tensor in tensors.items()})
    with pytest.raises(UsageError, match=r"m\.g_idx names a group that m\.scales lacks"):
        GptqForm({}).matrix("m", stored)


def test_moments_are_those_of_what_the_layers_read():
    opened = open_model(REASONER)
    sequences = [[5, 9, 200, 7], [3, 3, 8]]
    layer = opened.builder.layer(0)
    found, _ = Hidden(opened.builder, sequences).moments(0, layer)
    x = layer.attn_norm(opened.builder.embedding()(torch.tensor([5, 9, 200, 7, 3, 3, 8]))).double()
    torch.testing.assert_close(found["qkv"].h, x.T @ x / 7, rtol=1e-9, atol=1e-12)
    assert {name: each.tokens for name, each in found.items()} == dict.fromkeys(("qkv", "out", "gate_up", "down"), 7)


def test_layer_by_layer_gives_what_the_model_gives():
    opened, model = open_model(REASONER), load_model(REASONER, dtype="float32")
    hidden = Hidden(opened.builder, TEXTS[:2])
    for i in range(opened.config.num_layers):
        hidden.advance(hidden.after(i, opened.builder.layer(i)))
    logits = torch.cat([model.decoder.logits(stream) for stream in hidden.streams])
    lm = LM(model, Engine())
    expected = torch.cat([logits_from(lm, ids, 0) for ids in TEXTS[:2]])
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


def test_a_folder_holds_what_the_run_made_and_runs_in_one_native_call(folder):
    report = json.loads((folder / "report.json").read_text())
    assert len(report["rows"]) == 21
    assert report["error"] < report["unfed_error"]
    small = outlay.load(folder)
    assert small.model.format == "int4"
    assert runs_whole(small.model.decoder) == kernels.available()
    assert len(small.generate("Begin with 12.", max_tokens=8, ignore_eos=True).tokens) == 8
    exact, layer = load_model(folder, dtype="float32"), load_model(REASONER, dtype="float32").decoder.layers[1]
    change = weight_of(exact.decoder.layers[1].qkv) - weight_of(layer.qkv)
    assert 0 < float(change.norm() / weight_of(layer.qkv).norm()) < 0.15


def test_bits_are_those_of_the_file(folder):
    report, total = json.loads((folder / "report.json").read_text()), 0
    store = Checkpoint(folder, form_of(read_json(folder / "config.json")))
    shrunk = [name for name in store.names if name.rsplit(".", 1)[1] in ("qweight", "qzeros", "scales", "g_idx")]
    total = sum(store.tensor(name).nbytes for name in shrunk)
    weights = sum(row["shape"][0] * row["shape"][1] for row in report["rows"])
    assert report["bits"] == pytest.approx(8 * total / weights)
    every = sum(store.tensor(name).nbytes for name in store.names)
    others = sum(store.tensor(name).numel() for name in store.names if name not in shrunk)
    assert report["file_bits"] == pytest.approx(8 * every / (weights + others))


def test_a_run_that_was_stopped_goes_on_and_nothing_unfinished_has_its_name(folder, tmp_path):
    def stop(rows):
        if rows[0]["layer"] == 1:
            raise KeyboardInterrupt

    out = tmp_path / "four"
    with pytest.raises(KeyboardInterrupt):
        shrink.run(REASONER, "gptq:bits=4", out, calib=TEXTS, on_layer=stop)
    assert not out.exists()
    written = [path.stat().st_mtime_ns for path in sorted((tmp_path / "four.part").glob("model-0000[12].*"))]
    with pytest.raises(UsageError, match="left of a run with other settings"):
        shrink.run(REASONER, "gptq:bits=3", out, calib=TEXTS)
    shrink.run(REASONER, "gptq:bits=4", out, calib=TEXTS)
    again = [path.stat().st_mtime_ns for path in sorted(out.glob("model-0000[12].*"))]
    assert len(written) == 2
    assert written == again
    for path in folder.glob("model-*.safetensors"):
        store, other = Checkpoint(folder), Checkpoint(out)
        assert all(torch.equal(store.tensor(name), other.tensor(name)) for name in store.names), path


def test_plan_and_only_choose_what_is_shrunk(tmp_path):
    plan = {"*.down_proj": "gptq:bits=8", "*.0.mlp.*": "keep"}
    report = shrink.run(REASONER, "gptq", tmp_path / "a", bits=3, calib=TEXTS[:2], only="mlp", plan=plan)
    bits = {row["module"].removeprefix("model.layers."): row["method"] for row in report.rows}
    assert bits == {
        "0.mlp.down_proj": "gptq:bits=8", "1.mlp.gate_proj": "gptq:bits=3", "1.mlp.up_proj": "gptq:bits=3",
        "1.mlp.down_proj": "gptq:bits=8", "2.mlp.gate_proj": "gptq:bits=3", "2.mlp.up_proj": "gptq:bits=3",
        "2.mlp.down_proj": "gptq:bits=8",
    }  # fmt: skip
    assert load_model(tmp_path / "a").format == "int4+int8+bfloat16"


def test_moments_of_the_shrunk_layers_before_are_others(folder, tmp_path):
    report = shrink.run(REASONER, "gptq:bits=4", tmp_path / "a", calib=TEXTS, sequential=True)
    before = json.loads((folder / "report.json").read_text())["rows"]
    same = [one["error"] == other["error"] for one, other in zip(report.rows, before, strict=True)]
    assert all(same[:7])
    assert not any(same[7:])


def test_a_gguf_files_matrices_are_in_the_hubs_order(default_path, default_lm):
    source = Source(open_model(default_path))
    layer = default_lm.model.decoder.layers[0]
    q, k, v = (source.matrix(place) for place in source.places(0)[:3])
    assert torch.equal(torch.cat((q, k, v)), weight_of(layer.qkv))
    rest = {name: tensor.shape for name, tensor in source.rest({place.module for place in source.places(0)})}
    norms = {f"model.layers.{i}.{n}.weight" for i in range(30) for n in ("input_layernorm", "post_attention_layernorm")}
    matrices = {f"{place.module}.weight" for i in range(1, 30) for place in source.places(i)}
    assert set(rest) == matrices | norms | {"model.embed_tokens.weight", "model.norm.weight"}
    assert rest["model.layers.3.mlp.down_proj.weight"] == (576, 1536)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gptk"}, r"no method 'gptk' that shrinks \(did you mean 'gptq'"),
        ({"method": "gptq", "bits": 3.5}, "gptq holds 2, 3, 4 or 8 bits a weight, not 3.5"),
        ({"method": "gptq:group=96"}, "group=96 doesn't divide the 128 inputs of .*; group=64 does"),
        ({"method": "gptq:damping=0"}, "damping of gptq must be above 0"),
        ({"method": "rtn", "only": "head"}, "only 'head' is not known; it is one of attention, mlp"),
        ({"method": "rtn", "calib": []}, "the calibration has no tokens"),
        ({"method": "rtn", "calib": [[1, 525]]}, "the calibration has the token 525, but the model has 525"),
        ({"method": "rtn", "calib": "nowhere.txt"}, "no text nowhere.txt to calibrate with"),
        ({"method": "rtn", "plan": {"*": "keep"}}, "keeps every matrix as it is"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        shrink.run(REASONER, out=tmp_path / "out", **({"calib": TEXTS[:1]} | options))


def test_a_shrunk_model_is_not_shrunk_again_and_no_folder_is_overwritten(folder, tmp_path):
    with pytest.raises(UsageError, match="are packed already; give the model in floats"):
        shrink.run(folder, "rtn", tmp_path / "a", calib=TEXTS)
    with pytest.raises(UsageError, match="is there already; choose another --out"):
        shrink.run(REASONER, "rtn", folder, calib=TEXTS)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(hub.resolve(REASONER), tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.inf
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(UsageError, match=r"model\.layers\.1\.mlp\.up_proj has weights that are not finite"):
        shrink.run(tmp_path / "model", "rtn", tmp_path / "out", calib=TEXTS)


def test_a_damaged_folder_fails_its_check(folder, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    assert cli.main(["shrink", "--check", str(folder)]) == 0
    assert "21 matrices, none of them wrong" in capsys.readouterr().out
    bad = shutil.copytree(folder, tmp_path / "bad")
    tensors = load_file(bad / "model-00002.safetensors")
    tensors["model.layers.1.mlp.up_proj.g_idx"][0] = 99
    save_file(tensors, bad / "model-00002.safetensors")
    assert cli.main(["shrink", "--check", str(bad)]) == 1
    assert "model.layers.1.mlp.up_proj: model.layers.1.mlp.up_proj.g_idx names a group" in capsys.readouterr().out


def test_the_command_shrinks_and_the_catalogue_lists_what_can(tmp_path, capsys):
    (tmp_path / "text").write_text("Begin with 12. Add 5. " * 40)
    words = ["shrink", REASONER, "--method", "rtn", "--bits", "8", "--calib", str(tmp_path / "text"), "--json"]
    assert cli.main([*words, "--out", str(tmp_path / "eight"), "--tokens", "64"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "rtn:bits=8"
    assert cli.main(["shrink", REASONER, "--out", "x"]) == 2
    assert "--method is missing" in capsys.readouterr().err
    assert cli.main(["methods", "gptq"]) == 0
    assert set(shrinkers()) >= {"rtn", "gptq"}
    assert make("gptq:group=32", 3) == GPTQ(bits=3, group=32)
    assert make("rtn", None) == RTN()


def test_eight_symmetric_bits_run_as_they_are_stored(tmp_path):
    shrink.run(REASONER, "rtn:bits=8,group=32,symmetric=true", tmp_path / "a", calib=TEXTS[:1])
    store = Checkpoint(tmp_path / "a", form_of(read_json(tmp_path / "a" / "config.json")))
    stored = store.stored("model.layers.0.mlp.up_proj.weight")
    assert torch.equal(stored.plain().dequantize(), stored.dequantize())
    assert pack(stored, stored.format).format == "int8"


def test_without_a_text_the_model_writes_its_own_once(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus, "LONGEST", 12)  # tokens of an answer
    monkeypatch.setattr(corpus, "questions", lambda lm, indices, seed: [[5 + index, 9] for index in indices])
    report = shrink.run(REASONER, "rtn", tmp_path / "a", tokens=200)
    assert (report.tokens, report.text) == (200, "written by the model")
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    again = shrink.run(REASONER, "rtn", tmp_path / "b", tokens=200)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == shards
    assert [row["error"] for row in again.rows] == [row["error"] for row in report.rows]


PEAK = """
import resource, sys
from outlay import shrink
texts = [list(range(start, start + 32)) for start in range(0, 320, 32)]
shrink.run(sys.argv[1], sys.argv[3], sys.argv[2], calib=texts)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
FOUR_GIGABYTES = 4e9
GROWTH = 0.3e9
"""What 21 layers more may add to the peak: what is reported of them, and pages of files that were read."""


def write_large(folder, layers):
    """A model of random weights in bfloat16, of the widths of TinyLlama, whose 22 layers are 1.1 billion parameters."""
    from safetensors.torch import save_file

    hidden, inner, kv, vocab = 2048, 5632, 256, 32000
    folder.mkdir()
    config = {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 4, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048, "tie_word_embeddings": False, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copyfile(hub.resolve(REASONER) / "tokenizer.json", folder / "tokenizer.json")
    shapes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    where = {}
    for i in range(layers):
        tensors = {
            f"model.layers.{i}.{name}.weight": torch.randn(shape).mul_(0.02).bfloat16()
            for name, shape in shapes.items()
        }
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{norm}.weight"] = torch.ones(hidden).bfloat16()
        save_file(tensors, folder / f"model-{i}.safetensors")
        where |= dict.fromkeys(tensors, f"model-{i}.safetensors")
    rest = {name: torch.randn(vocab, hidden).bfloat16() for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file(rest | {"model.norm.weight": torch.ones(hidden).bfloat16()}, folder / "model-rest.safetensors")
    where |= dict.fromkeys([*rest, "model.norm.weight"], "model-rest.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def peak_bytes(folder, out, method):
    """Shrinks a folder in a process of its own; returns the most memory that it held."""
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder), str(out), method], capture_output=True, text=True, check=True
    )
    found = int(run.stdout) * 1024
    print(f"{method} {folder.name}: at most {found / 1e9:.2f} GB")
    return found


@pytest.mark.slow
def test_the_memory_that_shrinking_takes_does_not_grow_with_the_layers_of_a_billion_parameters(tmp_path):
    """By `rtn`, which is soon done; reads, moments and writes are the same for all methods."""
    for name, layers in (("one", 1), ("all", 22)):
        write_large(tmp_path / name, layers)
    one, all_layers = (peak_bytes(tmp_path / name, tmp_path / f"{name}-out", "rtn:bits=4") for name in ("one", "all"))
    assert all_layers < FOUR_GIGABYTES
    assert all_layers - one < GROWTH


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq:bits=4", "vptq:iters=1", "pvq:pulses=27", "nm:bits=8"])
def test_a_layer_as_wide_as_one_of_a_billion_parameters_is_shrunk_in_four_gigabytes(method, tmp_path):
    """The peak of each method is that of one layer, and what the test before allows for the other 21."""
    write_large(tmp_path / "one", 1)
    assert peak_bytes(tmp_path / "one", tmp_path / "out", method) + GROWTH < FOUR_GIGABYTES
