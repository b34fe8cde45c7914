"""csrc/scalar.cuh on the host, compiled with g++, against numpy; with nvcc, that it compiles for a device."""

import ctypes
import functools
import json
import re
import shutil
import subprocess
import tempfile

import numpy as np
import pytest
from conftest import ROOT

CSRC = ROOT / "csrc"
KINDS = ("dot", "cosine", "cosine_shifted", "cosine_squared", "rbf", "exp_euclidean")
# Arrays in, arrays out: name -> C++ body of one element, element types of the arguments, of the result.
FUNCTIONS = {
    "quantise": ("quantise(a[i])", "f", "i"),
    "unquantise": ("unquantise(a[i])", "i", "f"),
    **{
        kind: (f"similarity({kind.upper()}, a[i], b[i], c[i], e[i])", "ffff", "f") for kind in KINDS
    },  # a = x.y, b = x.x, c = y.y, e = parameter
    "excess": ("excess(a[i], b[i])", "ii", "i"),
    "weighted_excess": ("excess(a[i], b[i], c[i])", "iiq", "q"),
    "better": ("better(a[i], b[i], c[i], e[i])", "qqqq", "i"),
    "better_double": ("better(a[i], b[i], c[i], e[i])", "dqdq", "i"),
    "graph_cut_gain": ("graph_cut_gain(a[i], b[i], c[i], e[i])", "dddd", "d"),
    "log_det_entry": ("log_det_entry(a[i], b[i], c[i])", "ddd", "d"),
    "log_det_residual": ("log_det_residual(a[i], b[i], c[i])", "ddd", "d"),
}
C_TYPES = {"f": "float", "d": "double", "i": "int", "q": "long long"}
DTYPES = {"f": np.float32, "d": np.float64, "i": np.int32, "q": np.int64}


def source():
    lines = ['#include "scalar.cuh"', "using namespace smartgpu;"]
    for name, (body, arguments, result) in FUNCTIONS.items():
        parameters = ", ".join(f"const {C_TYPES[t]}* {p}" for t, p in zip(arguments, "abce", strict=False))
        lines.append(f'extern "C" void call_{name}(long long n, {parameters}, {C_TYPES[result]}* out) {{')
        lines.append(f"    for (long long i = 0; i < n; ++i) out[i] = {body};")
        lines.append("}")
    return "\n".join(lines) + "\n"


def flag_sets():
    """Plain, and what would break a careless header: FMA and contraction allowed, everything inlined and unrolled."""
    yield pytest.param(("-O1",), id="O1")
    yield pytest.param(("-O3", "-march=native", "-ffp-contract=fast"), id="O3-native-contract")


@pytest.fixture(scope="module", params=flag_sets())
def scalar(request, tmp_path_factory):
    """Calls a function of the header on numpy arrays: scalar("quantise", a)."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    folder = tmp_path_factory.mktemp("csrc")
    (folder / "scalar.cpp").write_text(source())
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", *request.param, "-shared", "-fPIC"]
    command += [f"-I{CSRC}", "-o", str(folder / "scalar.so"), str(folder / "scalar.cpp")]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(folder / "scalar.so"))

    def call(name, *arguments):
        _, types, result = FUNCTIONS[name]
        arrays = np.broadcast_arrays(*arguments)
        arrays = [np.ascontiguousarray(a, dtype=DTYPES[t]) for a, t in zip(arrays, types, strict=True)]
        out = np.full(arrays[0].shape, 77, dtype=DTYPES[result])
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays, out)]
        getattr(library, f"call_{name}")(ctypes.c_longlong(out.size), *pointers)
        return out

    return call


def test_quantise(scalar, rng):
    tiny = np.float32(2.0**-22)
    edges = [
        1,
        -1,
        0,
        -0.0,
        1.5,
        -7,
        np.inf,
        -np.inf,
        1e-45,
        tiny / 2,
        3 * tiny / 2,
        -tiny / 2,
        1 - tiny,
        2.0**-24 * 3,
    ]
    s = np.concatenate([edges, rng.uniform(-1, 1, 100_000), np.nextafter(np.float32([1, -1]), np.float32(0))])
    s = s.astype(np.float32)
    want = np.rint(np.clip(s.astype(np.float64), -1, 1) * 2**22)  # ties to even
    q = scalar("quantise", s)
    np.testing.assert_array_equal(q, want)
    np.testing.assert_array_equal(scalar("quantise", -s), -want)
    back = scalar("unquantise", q)
    np.testing.assert_array_equal(back, want * 2.0**-22)
    np.testing.assert_array_equal(scalar("quantise", back), q)


def defined(kind, xy, xx, yy, parameter):
    """Each kind in float64, from its definition."""
    xy, xx, yy, parameter = (np.asarray(a, np.float64) for a in (xy, xx, yy, parameter))
    norms = np.sqrt(xx * yy)
    cosine = np.clip(np.divide(xy, norms, out=np.zeros_like(norms), where=norms > 0), -1, 1)
    distance2 = np.maximum(xx + yy - 2 * xy, 0)
    return {
        "dot": xy * parameter,
        "cosine": cosine,
        "cosine_shifted": (1 + cosine) / 2,
        "cosine_squared": cosine**2,
        "rbf": np.exp(-parameter * distance2),
        "exp_euclidean": np.exp(-np.sqrt(distance2) / parameter),
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_similarity_kinds(kind, scalar, rng):
    x, y = rng.standard_normal((2, 20_000, 5)) * 10 ** rng.uniform(-3, 3, (2, 20_000, 1))
    xy, xx, yy = (np.sum(a * b, axis=1).astype(np.float32) for a, b in ((x, y), (x, x), (y, y)))
    parameter = np.float32({"dot": 2.0**-20, "rbf": 1e-6}.get(kind, 384.0))
    got = scalar(kind, xy, xx, yy, parameter)
    np.testing.assert_array_equal(scalar(kind, xy, yy, xx, parameter), got)  # symmetric to the bit
    want = defined(kind, xy, xx, yy, parameter)
    # A few roundings of 2^-24; a distance loses what cancels, relative to the norms, and its root half of that.
    lost = 2.0**-23 * (xx.astype(np.float64) + yy)
    # 1 + cosine rounds relative to 1, however small the sum.
    tolerance = 8 * 2.0**-24 * np.maximum(np.abs(want), 1 if kind == "cosine_shifted" else 2.0**-24)
    if kind == "rbf":
        tolerance += want * parameter * lost * 2
    if kind == "exp_euclidean":
        tolerance += want * np.sqrt(lost) / parameter
    assert (np.abs(got - want) <= tolerance).all()


def test_similarity_kinds_at_their_edges(scalar):
    one, zero = np.float32([1]), np.float32([0])
    assert [scalar(kind, one, one, one, one)[0] for kind in KINDS] == [1, 1, 1, 1, 1, 1]
    assert [scalar(kind, -one, one, one, one)[0] for kind in KINDS[:4]] == [-1, -1, 0, 1]
    # a zero row, with itself and with another
    for xx, yy in ((zero, zero), (zero, one), (one, zero)):
        assert [scalar(kind, zero, xx, yy, one)[0] for kind in KINDS[:4]] == [0, 0, 0.5, 0]
    # rounding may put a product above the norms, and a squared distance below zero
    above = np.nextafter(one, np.float32(2))
    assert scalar("cosine", above, one, one, one)[0] == 1
    assert scalar("rbf", above, one, one, one)[0] == scalar("exp_euclidean", above, one, one, one)[0] == 1
    # unit rows: the product comes back to the bit; norms whose product overflows or underflows do no harm
    s = np.float32([0.1, -0.7, 1 / 3])
    np.testing.assert_array_equal(scalar("cosine", s, one, one, one), s)
    for size in (1e30, 1e-30):
        big = np.float32([size])
        np.testing.assert_allclose(scalar("cosine", big / 2, big, big, one), 0.5, rtol=2.0**-22)


def test_cosine_squared_rounds_before_it_is_quantised(scalar, rng):
    """One FMA for s * s + 3 would round once: the header must round twice, as float32 in numpy does."""
    s = rng.uniform(-1, 1, 200_000).astype(np.float32)
    square = scalar("cosine_squared", s, np.float32(1), np.float32(1), np.float32(1))
    np.testing.assert_array_equal(square, s * s)
    np.testing.assert_array_equal(scalar("quantise", square), np.rint((s * s).astype(np.float64) * 2**22))


def test_excess(scalar, rng):
    top = 2**22
    s = np.concatenate([[top, -top, 0, 5, 5, 4], rng.integers(-top, top + 1, 1000)])
    level = np.concatenate([[0, top, 0, 5, 4, 5], rng.integers(0, top + 1, 1000)])
    want = np.maximum(s - level, 0)
    np.testing.assert_array_equal(scalar("excess", s, level), want)
    w = np.concatenate([[2**40, 2**40, 1, 0, 3, 1], rng.integers(0, 2**40, 1000)])
    np.testing.assert_array_equal(scalar("weighted_excess", s, level, w), want * w)


def test_better_is_lexicographic(scalar):
    gains, indices = np.array([-1, 0, 3, 3, 2**60, 2**60 + 1]), np.array([0, 7, 2**33, 5, 5, 4])
    for name in ("better", "better_double"):
        # 2^60 and 2^60 + 1 tie in float64, where the lower index wins
        key = gains if name == "better" else gains.astype(np.float64)
        for a in range(len(gains)):
            got = scalar(name, key[a], indices[a], key, indices)
            want = [(-key[a], indices[a]) < (-key[b], indices[b]) for b in range(len(gains))]
            np.testing.assert_array_equal(got, want)
    assert not scalar("better", [4], [9], [4], [9])[0]  # nothing is better than itself


def test_graph_cut_gain(scalar, rng):
    total, chosen, own = rng.standard_normal((3, 10_000)) * 1e3
    np.testing.assert_array_equal(
        scalar("graph_cut_gain", total, chosen, own, 0.4), total - 0.4 * chosen - 0.4 * own
    )


def test_log_det_update_is_the_schur_complement(scalar, rng):
    """Picks one after another: residuals from the update against determinants from the definition."""
    x = rng.standard_normal((30, 8))
    ridge, picks = 0.5, [4, 17, 0, 29]
    s = x @ x.T
    k = s + ridge * np.eye(30)
    residual, entries = np.diag(k).copy(), np.zeros((len(picks), 30))
    for t, j in enumerate(picks):
        inner = entries[:t].T @ entries[:t, j]
        # the ridge is part of the diagonal only: the entry of the pick itself is not asked for
        entries[t] = scalar("log_det_entry", s[:, j], inner, residual[j])
        residual = scalar("log_det_residual", residual, entries[t], ridge)
        chosen = picks[: t + 1]
        for i in set(range(30)) - set(chosen):
            bigger = np.linalg.slogdet(k[np.ix_([*chosen, i], [*chosen, i])])[1]
            assert (
                abs(np.log(residual[i]) - (bigger - np.linalg.slogdet(k[np.ix_(chosen, chosen)])[1])) < 1e-11
            )
    np.testing.assert_array_equal(scalar("log_det_entry", s[0], s[1], 2.0), (s[0] - s[1]) / np.sqrt(2.0))


def test_log_det_residual_keeps_its_floor(scalar):
    assert scalar("log_det_residual", [1.0, 1.0, 1.0], [1.0, 2.0, 0.5], [0.25, 0.25, 0.25]).tolist() == [
        0.25,
        0.25,
        0.75,
    ]


def test_no_header_is_read_under_nvrtc():
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    command = [
        "g++",
        "-x",
        "c++",
        "-E",
        "-nostdinc",
        "-nostdinc++",
        "-D__CUDACC_RTC__",
        "-D__CUDA_ARCH__=900",
    ]
    done = subprocess.run([*command, str(CSRC / "scalar.cuh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_compiles_for_a_device(arch, tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    kernels = ['#include "scalar.cuh"', "using namespace smartgpu;"]
    for name, (body, arguments, result) in FUNCTIONS.items():
        parameters = ", ".join(f"const {C_TYPES[t]}* {p}" for t, p in zip(arguments, "abce", strict=False))
        kernels.append(f'extern "C" __global__ void call_{name}({parameters}, {C_TYPES[result]}* out) {{')
        kernels.append(f"    const int i = threadIdx.x; out[i] = {body};")
        kernels.append("}")
    (tmp_path / "scalar.cu").write_text("\n".join(kernels) + "\n")
    command = ["nvcc", "-std=c++17", "-cubin", f"-arch={arch}", f"-I{CSRC}", "-Werror", "all-warnings"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "scalar.cubin"), str(tmp_path / "scalar.cu")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scalar.cubin").stat().st_size > 0


# ---- the kernels, compiled for GPUs that are not here

TABLE = ROOT / "tests" / "cuda_table.json"
SHARED = {"sm_80": 99, "sm_90": 227, "sm_100": 227}  # KiB of shared memory that a block may have
RESOURCES = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers(?:.*?(\d+) bytes smem)?",
)


@functools.cache
def resources(name, arch):
    """{kernel: registers, spills and static shared memory} of csrc/NAME.cu, compiled alone."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-std=c++17", "-cubin", f"-arch={arch}", f"-I{CSRC}", "-Xptxas", "-v"]
        done = subprocess.run(
            [*command, "-o", f"{folder}/out.cubin", str(CSRC / f"{name}.cu")], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    told = done.stderr.replace("\n", " ").split("Compiling entry function")[1:]
    found = (RESOURCES.search(f"Compiling entry function{part}") for part in told)
    return {
        m[1]: {"registers": int(m[5]), "spills": int(m[2]) + int(m[3]) + int(m[4]), "shared": int(m[6] or 0)}
        for m in found
    }


@pytest.mark.parametrize(
    "arch", ["sm_90", *(pytest.param(a, marks=pytest.mark.slow) for a in ("sm_80", "sm_100"))]
)
@pytest.mark.parametrize("name", ["batched_greedy", "tail"])
def test_kernels_against_the_table(name, arch):
    """No spills, registers for the blocks that a multiprocessor should hold, and nothing that grew unseen.

    `python tests/test_csrc.py` rewrites the table. sm_80 has no clusters.
    """
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed: csrc/ was not compiled for a device")
    found, known = resources(name, arch), json.loads(TABLE.read_text())[arch][name]
    assert set(found) == set(known)
    for kernel, now in found.items():
        then = known[kernel]
        threads, blocks = (1024, 1) if name == "tail" else (256, 2)
        if "x3" in kernel or "cluster" in kernel:
            blocks = 1
        assert now["spills"] == 0, kernel
        assert now["registers"] * threads * blocks <= 64 * 1024, kernel
        assert now["registers"] <= then["registers"] * 1.1, f"{kernel}: {now}, the table has {then}"
        staged = 0 if name == "tail" else 61440
        assert now["shared"] <= then["shared"] and now["shared"] + staged <= SHARED[arch] * 1024, kernel


def test_sources_ask_for_no_headers():
    """Device code includes nothing but csrc/: no cooperative_groups, no mma.h, no cub; and no fast math."""
    for path in CSRC.glob("*.cu*"):
        text = path.read_text()
        named = set(re.findall(r"#include [<\"]([\w./]+)", text))
        allowed = {p.name for p in CSRC.glob("*.cuh")} | {"host_team.h", "simt_ptx.h"}
        assert named <= allowed | ({"cmath", "cstdint", "cstring"} if path.name == "scalar.cuh" else set()), (
            path.name
        )
        assert "__expf" not in text and "wgmma" not in text
        assert "asm" not in text or path.name in ("ptx.cuh", "scalar.cuh"), "PTX has one place"


if __name__ == "__main__":
    every = {a: {name: resources(name, a) for name in ("batched_greedy", "tail")} for a in SHARED}
    TABLE.write_text(json.dumps(every, indent=1, sort_keys=True) + "\n")
