"""A server of two tiny models for most tests, and the official clients to ask it."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace

import openai
import pytest
from serve.checkpoints import write_checkpoint
from serve.running import METHODS, start

from outlay import catalog


@pytest.fixture(autouse=True)
def seeds_that_are_known(monkeypatch):
    """What a request without a seed is drawn by, the same in every run, so that no test passes or fails by chance."""
    draw = Random(0)
    for module in ("asked", "asking"):
        monkeypatch.setattr(f"outlay.serve.{module}.secrets", SimpleNamespace(randbelow=draw.randrange))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory):
    """Another model of the same tokens, which ends texts by itself."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "other", seed=1, letters=False, form="[TOOL_CALLS]")


@pytest.fixture(scope="module", autouse=True)
def scripted_methods():
    """Methods that tests script, in the catalogue for the tests of a module and no longer."""
    with pytest.MonkeyPatch.context() as patch:
        for known in (catalog.entries(), catalog.methods()):
            for name, method in METHODS.items():
                patch.setitem(known, name, method)
        yield


@pytest.fixture(scope="module")
def server(checkpoint, other_checkpoint, scripted_methods):
    drafts = {"small": other_checkpoint, "same": checkpoint}
    running = start({"tiny": checkpoint, "other": other_checkpoint}, drafts=drafts, keep_alive=0.2)
    yield running
    running.stop()


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=20)
