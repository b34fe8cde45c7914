"""Machine code on disk, and what is said where CUDA kernels cannot be used. Compilers are made up, but for CuPy's."""

import logging
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT

from smartgpu.backends import cuda_cache
from smartgpu.backends.cuda_cache import Cache, is_whole, source

HEADS = ("batched_greedy", "tail")


class Fake:
    """Counts what it compiles."""

    def __init__(self, version="1", arch=90):
        self.version, self.built = f"fake {version}, sm_{arch}", []

    def compile(self, code, name, options):
        self.built.append((name, options))
        return f"{self.version} {options} {code}".encode()


def test_an_entry_is_built_once_for_all_that_it_depends_on(tmp_path):
    fake = Fake()
    path = Cache(tmp_path, fake).get("tail", "code", ("-a",))
    assert path.read_bytes() == fake.compile("code", "tail.cu", ("-a",))
    fake.built.clear()
    assert Cache(tmp_path, fake).get("tail", "code", ("-a",)) == path and not fake.built
    other = [
        ("code2", ("-a",), fake),
        ("code", ("-b",), fake),
        ("code", ("-a",), Fake("2")),
        ("code", ("-a",), Fake(arch=80)),
    ]
    paths = {Cache(tmp_path, compiler).get("tail", code, options) for code, options, compiler in other}
    assert len(paths | {path}) == 5


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "digest"])
def test_a_damaged_entry_is_built_again(damage, tmp_path):
    fake = Fake()
    path = Cache(tmp_path, fake).get("tail", "code")
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "digest":
        path.with_suffix(".sha256").write_bytes(b"\xff\xfe")
    else:
        path.write_bytes(whole[:5] if damage == "cut" else b"")
    assert not is_whole(path)
    assert Cache(tmp_path, fake).get("tail", "code") == path
    assert path.read_bytes() == whole and len(fake.built) == 2


def test_a_build_that_fails_leaves_nothing(tmp_path):
    class Broken(Fake):
        def compile(self, *_):
            raise RuntimeError("tail.cu(7): error: no")

    with pytest.raises(RuntimeError, match="error: no"):
        Cache(tmp_path, Broken()).get("tail", "code")
    assert not list(tmp_path.glob("*.cubin"))
    fake = Fake()
    Cache(tmp_path, fake).get("tail", "code")
    assert fake.built  # the lock of the one that failed is gone


def test_two_processes_build_once(tmp_path):
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from smartgpu.backends.cuda_cache import Cache
class Slow:
    version = "1"
    def compile(self, code, name, options):
        with open({str(tmp_path / "built")!r}, "a") as file:
            file.write("x")
        time.sleep(0.5)
        return b"code"
print(Cache(Path({str(tmp_path / "cache")!r}), Slow()).get("tail", "code").read_bytes())
"""
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    assert [child.communicate(timeout=60)[0] for child in both] == [b"b'code'\n"] * 2
    assert (tmp_path / "built").read_text() == "x"


@pytest.mark.parametrize("how", ["read-only", "a file"])
def test_a_folder_that_cannot_be_used_costs_one_message(how, tmp_path, caplog):
    folder = tmp_path / "cache"
    if how == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o500)
        if os.access(folder, os.W_OK):  # root may write anywhere
            folder = tmp_path / "file" / "below"
            folder.parent.write_text("")
    fake, cache = Fake(), None
    with caplog.at_level(logging.WARNING, "smartgpu"):
        cache = Cache(folder, fake)
        one, two, again = cache.get("tail", "a"), cache.get("tail", "b"), cache.get("tail", "a")
    assert one == again and one != two and len(fake.built) == 2
    assert is_whole(one) and not one.is_relative_to(tmp_path)
    assert len(caplog.records) == 1 and "built again by every process" in caplog.text


def test_waiting_for_another_ends(tmp_path, monkeypatch, caplog):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(cuda_cache, "WAIT", 0.1)
    fake = Fake()
    path = Cache(tmp_path, fake).get("tail", "code")
    path.unlink()
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        start, cache = time.monotonic(), Cache(tmp_path, fake)
        assert cache.get("tail", "code").read_bytes() == fake.compile("code", "tail.cu", ())
        assert time.monotonic() - start < 5
    assert "another process" in caplog.text


@pytest.mark.parametrize("name", HEADS)
def test_a_source_is_one_text_without_headers(name):
    text = source(name)
    assert '#include "' not in text and text.count("struct Team {") == 1
    assert "SMARTGPU_HD int quantise" in text


# ---- what stands in the way


@pytest.fixture
def asked(monkeypatch):
    """find() on a machine with a GPU, where CuPy is what `answer` says."""
    pytest.importorskip("torch")
    from smartgpu.backends import cuda, gpu

    def ask(answer, there=True):
        cuda.find.cache_clear()
        monkeypatch.setattr(gpu, "interpreted", lambda: False)
        monkeypatch.setattr(gpu, "find_gpu", lambda: gpu.Found(True, True))
        monkeypatch.setattr(cuda.torch.version, "cuda", "13.0")
        monkeypatch.setattr(
            cuda.importlib.util, "find_spec", lambda name: SimpleNamespace() if there else None
        )

        def version():
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(cuda, "cupy_cuda", version)
        found = cuda.find()
        cuda.find.cache_clear()
        return found

    return ask


def test_cupy_is_of_torchs_cuda(asked):
    assert asked(13).usable
    other = asked(12)
    assert (
        not other.usable
        and "CuPy is for CUDA 12, torch for CUDA 13" in other.missing
        and "cuda13" in other.missing
    )
    assert "not installed" in asked(13, there=False).missing
    broken = asked(ImportError("libcuda.so.1: cannot open\nlong story"))
    assert "CuPy does not work: libcuda.so.1: cannot open (" in broken.missing


def test_one_message_for_what_is_missing(asked, monkeypatch, caplog):
    torch = pytest.importorskip("torch")
    from smartgpu.backends import cuda

    found = asked(12)
    monkeypatch.setattr(cuda, "find", lambda: found)
    monkeypatch.setattr(cuda, "_known", {})
    monkeypatch.setattr(cuda, "_told", set())
    for index in (0, 1, 0):
        assert cuda.kernels(torch.device("cuda", index)) is None
    assert len(caplog.records) == 1 and "Triton does their work: CuPy is for CUDA 12" in caplog.text


@pytest.mark.parametrize("name", HEADS)
def test_nvrtc_builds_the_sources(name, tmp_path):
    """CuPy's own compiler needs no GPU. Where CuPy is not installed, nvcc's gate stands for it (test_csrc.py)."""
    pytest.importorskip("cupy_backends")
    from smartgpu.backends.cuda import Nvrtc

    options = ("-std=c++17",) if name == "tail" else ("-std=c++17", "-DSMARTGPU_ONLY=0")
    path = Cache(tmp_path, Nvrtc(90)).get(name, source(name), options)
    assert ends_of_tables(path.read_bytes()) <= path.stat().st_size
    with pytest.raises(RuntimeError, match=r'^tail.cu\(1\): error: .*"nothing"'):
        Nvrtc(90).compile("__device__ int a = nothing;", "tail.cu", options)


def ends_of_tables(elf):
    """The least size of an ELF file of 64 bits: where its tables of sections and of segments end."""
    number = {name: int.from_bytes(elf[at : at + size], "little") for name, (at, size) in TABLES.items()}
    return max(number[f"{t}off"] + number[f"{t}entsize"] * number[f"{t}num"] for t in ("ph", "sh"))


TABLES = {
    "phoff": (0x20, 8),
    "shoff": (0x28, 8),
    "phentsize": (0x36, 2),
    "phnum": (0x38, 2),
    "shentsize": (0x3A, 2),
    "shnum": (0x3C, 2),
}


def test_the_byte_that_cupy_takes_off_comes_back(tmp_path):
    """A file without it ends inside its last table, which loaders of files may refuse."""
    pytest.importorskip("torch")
    from smartgpu.backends.cuda import whole

    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed: there is no machine code")
    path = tmp_path / "tail.cubin"
    command = [
        "nvcc",
        "-std=c++17",
        "-cubin",
        "-arch=sm_90",
        "-o",
        str(path),
        str(cuda_cache.CSRC / "tail.cu"),
    ]
    subprocess.run(command, check=True)
    elf = path.read_bytes()
    assert whole(elf) == elf == whole(elf[:-1]) and ends_of_tables(elf) == len(elf)
    for bad in (elf[:-2], elf[:40], b"// text " * 20):
        with pytest.raises(RuntimeError, match="no machine code"):
            whole(bad)
