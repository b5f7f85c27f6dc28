import pytest

from outlay import kernels


@pytest.fixture(autouse=True)
def one_thread():
    if not kernels.available():
        pytest.skip("the native kernels are not built")
    kernels.set_threads(1)
    yield
    kernels.set_threads(1)
