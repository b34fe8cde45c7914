"""Shared by all tests: the interpreter switch, the `gpu` mark, seeds and the shared data.

Run from the root of the checkout: `python -m pytest`. This file must be loaded before anything imports triton.
"""

import ctypes
import functools
import importlib.util
import os
import random
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.register_assert_rewrite("oracle")

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 600  # seconds for one test, where pytest-timeout is installed and the test names no other


@functools.cache
def has_gpu() -> bool:
    """Whether torch can use an NVIDIA GPU. Asks the driver first: torch is imported only where there is one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return False
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


# Triton reads this when a kernel is defined: without a GPU every kernel runs in the interpreter, on the CPU.
if not has_gpu():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config):
    if importlib.util.find_spec("hypothesis"):
        import hypothesis

        # The same examples on every run; no deadline, because the machines of CI are shared.
        hypothesis.settings.register_profile("smartgpu", derandomize=True, deadline=None, print_blob=True)
        hypothesis.settings.load_profile("smartgpu")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU that torch can use; none found"))
        if config.pluginmanager.hasplugin("timeout") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TIMEOUT))


@pytest.fixture(autouse=True)
def _seeds():
    """Whatever draws from a global generator draws the same on every run."""
    random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def rng(request) -> np.random.Generator:
    """A generator of this test's own: the same on every run, another for every parameter set."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture(
    params=[
        pytest.param("cpu", id="interpreter"),
        pytest.param("cuda", id="cuda", marks=pytest.mark.gpu),
    ]
)
def device(request) -> str:
    """Where a test of Triton kernels puts its tensors: on the CPU under the interpreter, or on the GPU."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if request.param == "cpu" and not interpreted:
        pytest.skip("kernels are compiled here, for the GPU; TRITON_INTERPRET=1 runs them in the interpreter")
    if request.param == "cuda" and interpreted:
        pytest.skip("TRITON_INTERPRET=1: kernels run in the interpreter here")
    pytest.importorskip("triton", reason="triton is not installed (pip install 'smartgpu[gpu]')")
    return request.param


@pytest.fixture
def smart(tmp_path, monkeypatch, capsys):
    """Runs a command of smartgpu in an empty folder of its own: (exit status, stdout, stderr).

    Modules that need files there have a fixture of the same name over this one.
    """
    pytest.importorskip("pyarrow")
    from smartgpu import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMARTGPU_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        capsys.readouterr()
        try:
            status = cli.main([str(a) for a in arguments])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The shared real pools: SMARTGPU_DATA, or ../shared/data beside the checkout."""
    path = Path(os.environ.get("SMARTGPU_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no shared data at {path} (set SMARTGPU_DATA)")
    return path


@pytest.fixture(scope="session")
def alpaca(data_dir) -> np.ndarray:
    """Embeddings of the Alpaca pool, (52002, 384) float16, memory-mapped read-only."""
    path = data_dir / "alpaca" / "minilm.npy"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return np.load(path, mmap_mode="r", allow_pickle=False)
