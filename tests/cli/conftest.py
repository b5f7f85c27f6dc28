"""A tiny random checkpoint on disk that writes letters for ever, and ways to run the command line on it."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers

from outlay.cli import main, terminal

SRC = Path(__file__).parents[2] / "src"
HIDDEN, INNER, VOCAB, KV = 32, 64, 257, 16
CONTEXT = 60_000


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder in the hub's layout: a two-layer Llama over bytes, whose head can write letters only."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)

    def weight(*shape):
        return torch.randn(shape, generator=generator) * 1.5 / shape[-1] ** 0.5

    tokenizer = _byte_tokenizer()
    letters = [tokenizer.token_to_id(letter) for letter in "abcdefghijklmnopqrstuvwxyz"]
    head = torch.zeros(VOCAB, HIDDEN)
    head[letters] = 4 * weight(len(letters), HIDDEN)
    weights = {"model.embed_tokens.weight": weight(VOCAB, HIDDEN), "model.norm.weight": torch.ones(HIDDEN)}
    weights["lm_head.weight"] = head
    for layer in range(2):
        parts = {
            "self_attn.q_proj": weight(HIDDEN, HIDDEN), "self_attn.k_proj": weight(KV, HIDDEN),
            "self_attn.v_proj": weight(KV, HIDDEN), "self_attn.o_proj": weight(HIDDEN, HIDDEN),
            "mlp.gate_proj": weight(INNER, HIDDEN), "mlp.up_proj": weight(INNER, HIDDEN),
            "mlp.down_proj": weight(HIDDEN, INNER), "input_layernorm": torch.ones(HIDDEN),
            "post_attention_layernorm": torch.ones(HIDDEN),
        }  # fmt: skip
        weights |= {f"model.layers.{layer}.{name}.weight": part for name, part in parts.items()}
    save_file(weights, folder / "model.safetensors")
    config = {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT, "eos_token_id": VOCAB - 1, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def _byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE(vocab={piece: token for token, piece in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([tokenizers.AddedToken("<end>", special=True)])
    return inner


@pytest.fixture
def outlay(capsys, monkeypatch):
    """Runs the command line in this process: `status, out, err = outlay("run", "Hello")`."""

    def run(*words, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = main([str(word) for word in words])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def refusal(outlay):
    """Runs the command line, checks that it wrote one line on stderr and nothing else, and returns status and line."""

    def run(*words, stdin=b""):
        status, out, err = outlay(*words, stdin=stdin)
        assert out == ""
        assert err.startswith("outlay: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        return status, err

    return run


@pytest.fixture
def start():
    """Starts the command line as a process of its own; what is left running is ended after the test."""
    started = []

    def run(*words, **options):
        environment = os.environ | {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"} | options.pop("env", {})
        environment.pop("PYTHONUNBUFFERED", None)  # it would hide what happens to text that is still in a buffer
        every = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "bufsize": 0,
        } | options
        command = [sys.executable, "-m", "outlay", *map(str, words)]
        started.append(subprocess.Popen(command, env=environment, **every))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def on_a_terminal(monkeypatch):
    """Runs the command line on a pseudo-terminal of 80 columns, in this process, or in one of its own with `start`.

    Returns all that it wrote there.
    """

    def run(*words, start=None):
        screen, end = pty.openpty()
        written = []
        reader = threading.Thread(target=lambda: written.append(_all_of(screen)))
        reader.start()
        if start is None:
            with os.fdopen(end, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
                for name, value in (("TERM", "xterm"), ("COLUMNS", "80")):
                    patch.setenv(name, value)
                for name in ("stdout", "stderr"):
                    patch.setattr(sys, name, stream)
                status = main([str(word) for word in words])
        else:
            process = start(*words, stdout=end, stderr=end, env={"TERM": "xterm", "COLUMNS": "80"})
            os.close(end)
            status = process.wait(60)
        reader.join()
        os.close(screen)
        assert status == 0
        return written[0].decode()

    return run


def _all_of(screen):
    """Reads a pseudo-terminal until its other end is closed."""
    written = b""
    while True:
        try:
            part = os.read(screen, 4096)
        except OSError:  # how Linux says that the other end is closed
            return written
        if not part:
            return written
        written += part


@pytest.fixture
def little_text(monkeypatch, tmp_path):
    """An empty cache, and training on a moment's text: a few short answers, to prompts that are at hand."""
    from outlay.train import corpus, questions

    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus, "TOGETHER", 8)
    monkeypatch.setattr(corpus, "LONGEST", 48)
    monkeypatch.setattr(questions, "LONGEST", 16)
    monkeypatch.setattr(questions, "library_functions", lambda: ("def one():\n    ...\n", "def two():\n    ...\n"))
    monkeypatch.setattr(questions, "library_texts", lambda: ("A text about one thing.", "A text about another."))


class Watch:
    """Keeps the phases that a command shows, and presses Ctrl-C at one of them: `stop = "training", 2`."""

    def __init__(self):
        self.seen, self.stop = [], None

    def __call__(self, phase, done, total):
        self.seen.append((phase.partition(",")[0], done))
        if self.seen[-1] == self.stop:
            self.stop = None
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def watch(monkeypatch):
    watch = Watch()
    monkeypatch.setattr(terminal.Progress, "__call__", lambda progress, *shown: watch(*shown))
    return watch
