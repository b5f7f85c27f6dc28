"""What shrinking costs the layers of the default model: errors of one method over another's, on the same inputs."""

from __future__ import annotations

import math
from pydoc_data.topics import topics

import pytest
import torch

from outlay.models.load import open_model
from outlay.shrink.calibration import Hidden, text_of
from outlay.shrink.feedback import proxy_error
from outlay.shrink.gptq import GPTQ
from outlay.shrink.pvq import PVQ
from outlay.shrink.source import Source
from outlay.shrink.vptq import VPTQ

LAYERS, PARTS, ROWS, TOKENS = (3, 15), ("q", "v", "out", "gate", "down"), 192, 2048


@pytest.fixture(scope="module")
def matrices(default_path, tmp_path_factory):
    """Ten matrices, their first rows, and the second moments of their inputs."""
    text = tmp_path_factory.mktemp("text") / "documentation.txt"
    text.write_text("\n\n".join(topics[name] for name in sorted(topics)[::2]))
    opened = open_model(default_path)
    source, hidden, found = Source(opened), Hidden(opened.builder, text_of(text, opened, TOKENS)), []
    for i in range(LAYERS[-1] + 1):
        layer = opened.builder.layer(i)
        if i not in LAYERS:
            hidden.advance(hidden.after(i, layer))
            continue
        moments, after = hidden.moments(i, layer)
        hidden.advance(after)
        places = [place for place in source.places(i) if place.part in PARTS]
        found += [(source.matrix(place)[:ROWS], moments[place.reads]) for place in places]
    return found


def mean_errors(matrices, method):
    """The geometric means of a method's errors with and without its feedback."""
    logs = torch.zeros(2, dtype=torch.float64)
    for weight, moment in matrices:
        shrunk = method.shrink(weight, moment, "a layer")
        unfed = shrunk.weight if shrunk.unfed is None else shrunk.unfed
        logs += torch.tensor([math.log(proxy_error(weight, each, moment.h)) for each in (shrunk.weight, unfed)])
    return (logs / len(matrices)).exp().tolist()


@pytest.mark.slow
def test_pvq_errs_less_than_gptq_with_more_bits_and_needs_its_feedback_and_rotation(matrices):
    ours, unfed = mean_errors(matrices, PVQ(pulses=27))
    plain, _ = mean_errors(matrices, PVQ(pulses=27, rotate=False))
    gptq, _ = mean_errors(matrices, GPTQ(bits=3, group=64))
    print(f"pvq {ours:.5f}, without feedback {unfed:.5f}, without rotation {plain:.5f}, gptq 3 bits {gptq:.5f}")
    assert ours < 0.65 * gptq
    assert unfed > 4 * ours
    assert plain > 1.2 * ours


@pytest.mark.slow
def test_vptq_errs_less_than_its_means_alone_and_than_gptq_with_more_bits(matrices):
    ours, unfed = mean_errors(matrices, VPTQ(v=4, k=256, k_res=0))
    gptq, _ = mean_errors(matrices, GPTQ(bits=2, group=64))
    print(f"vptq {ours:.5f}, without feedback {unfed:.5f}, gptq 2 bits {gptq:.5f}")
    assert ours < 0.45 * unfed
    assert ours < 0.6 * gptq
