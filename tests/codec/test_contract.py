"""A file opens in every instruction set, on any number of threads, whatever torch does, alone and beside others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from codec.make_archives import TEXT
from codec.reading import ARCHIVES, forced, read

from outlay import codec, kernels
from outlay.codec.container import unpack
from outlay.codec.files import describe, open_text
from outlay.drafts import resolve
from outlay.errors import UsageError
from outlay.models.load import load_model

PRINT_PROBE = """
import sys
from outlay.codec.text import probe
from outlay.models.load import load_model
print(probe(load_model(sys.argv[1]), "int8").hex())
"""


def bits_of(packed):
    """All of a file but the name of the instruction set that wrote it."""
    container = unpack(packed)
    return describe(container) | {"writer": "", "bytes": 0, "header_bytes": 0}, container.body


def test_the_same_file_is_written_and_read_in_every_instruction_set(model, each_isa):
    files = {}
    for isa in each_isa():
        for threads in (1, 2):
            kernels.set_threads(threads)
            files[isa, threads] = forced(TEXT, model, block=64)
    assert len({isa for isa, _ in files}) > 1
    first = next(iter(files.values()))
    assert all(bits_of(packed) == bits_of(first) for packed in files.values())
    for _ in each_isa():
        assert read(first, model) == TEXT
        assert read(first, model, draft=resolve("lookup", model), lanes=2) == TEXT
    kernels.set_threads(1)


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_what_torch_runs_on_changes_nothing(capability):
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": str(Path(kernels.__file__).parents[2])}
    folder = ARCHIVES / "model"
    found = subprocess.run(
        [sys.executable, "-c", PRINT_PROBE, folder], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert found == unpack((ARCHIVES / "text-bfloat16-int8.olz").read_bytes()).decoder.probe.hex()


@pytest.mark.parametrize("archive", sorted(path.name for path in ARCHIVES.glob("text-*.olz")))
def test_archives_open(archive):
    """They were written on an Intel processor with AMX. Whoever changes a bit of a kernel raises `ARITHMETIC`."""
    packed = (ARCHIVES / archive).read_bytes()
    opened = load_model(ARCHIVES / "model", dtype=unpack(packed).decoder.format)
    if unpack(packed).decoder.arithmetic != kernels.ARITHMETIC:
        with pytest.raises(UsageError, match="arithmetic"):
            read(packed, opened)
    else:
        assert read(packed, opened) == TEXT
        assert bits_of(forced(TEXT, opened, block=50, kv_dtype=unpack(packed).decoder.kv_dtype)) == bits_of(packed)


def test_the_archive_of_xz_opens():
    assert codec.decompress((ARCHIVES / "xz.olz").read_bytes()) == TEXT


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("weights", bytes(32), "weights of model are others"),
        ("arithmetic", 99, "arithmetic 99"),
        ("probe", bytes(16), "other probabilities here"),
        ("format", "int8", "held in int8"),
        ("coder", "ans20", "another coder"),
        ("alphabet", 300, "another coder or alphabet"),
    ],
)
def test_a_file_of_other_bits_is_refused_before_it_is_decoded(model, field, value, message):
    from dataclasses import replace

    container = unpack(forced(TEXT, model, block=64))
    changed = replace(container, decoder=container.decoder._replace(**{field: value, "writer": "outlay 9.9, mmx"}))
    with pytest.raises(UsageError, match=message) as caught:
        open_text(model, changed)
    assert "\n" not in str(caught.value)
    if field in ("arithmetic", "probe"):
        assert "outlay 9.9, mmx" in str(caught.value)
        assert kernels.isa() in str(caught.value)


@pytest.mark.slow
def test_the_default_model_reads_in_every_instruction_set_what_one_wrote(default_path, each_isa):
    data = ("It was the best of times, it was the worst of times. " * 3).encode()
    opened = load_model(default_path)
    files = [forced(data, opened, block=40) for isa in each_isa() if isa != "scalar"]
    assert all(bits_of(packed) == bits_of(files[0]) for packed in files)
    assert read(files[0], opened) == data
