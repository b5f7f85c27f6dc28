import pytest
from codec.reading import ARCHIVES

from outlay import kernels
from outlay.models.load import load_model


@pytest.fixture(autouse=True)
def native():
    if not kernels.available():
        pytest.skip("the native kernels are not built")


@pytest.fixture(scope="session")
def model():
    """A tiny random model over bytes, whose tokenizer lacks tokens for some of them."""
    return load_model(ARCHIVES / "model", dtype="int4")
