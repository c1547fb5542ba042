"What every test stands on: one thread per worker, no network, no display, a data root of its own."
import os
import socket
import tempfile

import pytest

# before any test module imports torch; processes that tests start inherit it
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg",
               "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

DATA = tempfile.TemporaryDirectory(prefix="vlnotes-test-")
os.environ["VLNOTES_DATA"] = DATA.name


def pytest_unconfigure(config): DATA.cleanup()


def local(address):
    "Whether a socket address stays on this machine."
    if not isinstance(address, tuple): return True # a Unix socket
    return str(address[0]) in ("localhost", "::1", "") or str(address[0]).startswith("127.")


@pytest.fixture(scope="session", autouse=True)
def offline():
    "A test that reaches for the network fails with a sentence; servers on this machine are fine."
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded(real):
        def call(self, address):
            if not local(address): raise OSError(f"tests are offline: connection to {address} refused")
            return real(self, address)
        return call

    with pytest.MonkeyPatch.context() as m:
        m.setattr(socket.socket, "connect", guarded(connect))
        m.setattr(socket.socket, "connect_ex", guarded(connect_ex))
        yield
