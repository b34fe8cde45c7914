"""Whatever holds the pool: the same selection as for a plain float32 array."""

import itertools

import numpy as np
import pytest

from smartgpu import select


@pytest.fixture
def x(rng) -> np.ndarray:
    """Copies, a zero row, and values that float16 and bfloat16 hold exactly: 8 bits, so that no conversion rounds."""
    out = rng.integers(-120, 121, (130, 12)).astype(np.float32)
    out[70:80] = out[:10]
    out[5] = 0
    return out


def same(value, x, **how) -> None:
    for objective in ("facility_location", "graph_cut", "log_det"):
        for similarity in ("cosine", "rbf"):
            one = select(x, 25, objective, similarity, **how)
            two = select(value, 25, objective, similarity, **how)
            np.testing.assert_array_equal(one.indices, two.indices)
            np.testing.assert_array_equal(one.gains, two.gains)
            assert one.n == two.n


LAYOUTS = {
    "fortran": np.asfortranarray,
    "rows-strided": lambda x: np.repeat(x, 3, axis=0)[::3],
    "columns-strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "window": lambda x: np.pad(x, 5)[5:-5, 5:-5],
    "transposed": lambda x: x.T.copy().T,
    "unaligned": lambda x: np.frombuffer(b"0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape),
    "nested lists": lambda x: x.tolist(),
    "matrix": np.asmatrix,
}
DTYPES = ["f2", "f4", "f8", "g", ">f2", ">f4", ">f8", "i1", "i2", ">i4", "i8"]


@pytest.mark.filterwarnings("ignore:.*matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(x, layout):
    value = LAYOUTS[layout](x)
    before = np.array(value)
    same(value, x)
    np.testing.assert_array_equal(value, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(x, dtype):
    same(x.astype(dtype), x)
    same(np.asfortranarray(x.astype(dtype)), x)


def test_unsigned_and_bool(rng):
    bits = rng.random((90, 10)) < 0.5
    for dtype in (bool, np.uint8, np.uint64):
        same(bits.astype(dtype), bits.astype(np.float32))


def test_read_only(x):
    value = x.copy()
    value.flags.writeable = False
    same(value, x)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_memmap(x, tmp_path, dtype, order):
    np.save(tmp_path / "x.npy", np.asarray(x.astype(dtype), order=order))
    same(np.load(tmp_path / "x.npy", mmap_mode="r"), x)


def test_more_precision_than_float32_is_used(rng):
    """float64 rows are normalised in float64 and rounded once, not rounded first."""
    x = rng.standard_normal((80, 6)) * 1e30
    np.testing.assert_array_equal(
        select(x * 1e200, 20).indices, select(x, 20).indices
    )  # no float32 holds these
    np.testing.assert_array_equal(select(x * 1e-300, 20).indices, select(x, 20).indices)


def test_torch(x):
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8):
        same(torch.tensor(x).to(dtype), x)
    same(torch.tensor(x, requires_grad=True), x)
    same(torch.tensor(x.T.copy()).T, x)
    same(torch.nn.Parameter(torch.tensor(x, dtype=torch.bfloat16)), x)
    scores = torch.tensor(x[:, 0])
    np.testing.assert_array_equal(
        select(x, 9, given=torch.tensor([1, 4])).indices, select(x, 9, given=[1, 4]).indices
    )
    from smartgpu import Modular

    np.testing.assert_array_equal(
        select(x, 9, Modular(scores)).indices, select(x, 9, Modular(x[:, 0])).indices
    )


def test_dlpack(x):
    class Tensor:
        def __dlpack__(self, **how):
            return x.__dlpack__(**how)

        def __dlpack_device__(self):
            return x.__dlpack_device__()

    same(Tensor(), x)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arrow(x, dtype):
    pa = pytest.importorskip("pyarrow")
    flat = pa.array(x.astype(dtype).reshape(-1))
    fixed = pa.FixedSizeListArray.from_arrays(flat, 12)
    offsets = np.arange(0, x.size + 1, 12)
    columns = {
        "fixed": fixed,
        "list": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat),
        "large": pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat),
    }
    for name, column in columns.items():
        same(column, x)
        same(column[7:100], x[7:100])
        same(pa.table({"text": ["a"] * 130, "embeddings": column}), x)
        for cuts in ((0, 50, 130), (0, 0, 40, 130), (0, 40, 40, 130), (0, 130, 130)):  # empty chunks anywhere
            parts = [column[a:b] for a, b in itertools.pairwise(cuts)]
            try:
                same(pa.chunked_array(parts), x)
            except ValueError as error:
                pytest.fail(f"{name} column in chunks of {[len(p) for p in parts]} rows: {error}")


def test_parquet(x, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    fixed = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 12)
    pq.write_table(pa.table({"embedding": fixed}), tmp_path / "x.parquet", row_group_size=33)
    same(pq.read_table(tmp_path / "x.parquet"), x)
    same(pq.read_table(tmp_path / "x.parquet").column("embedding"), x)


def test_hugging_face_dataset(x):
    datasets = pytest.importorskip("datasets")
    for column in ("embeddings", "embedding", "vector"):
        whole = datasets.Dataset.from_dict({"text": [str(i) for i in range(130)], column: x.tolist()})
        same(whole, x)
    rows = np.random.default_rng(0).permutation(130)[:77]
    same(whole.select(rows), x[rows])
    same(whole.select(range(10, 90)), x[10:90])
    same(whole.filter(lambda row: int(row["text"]) % 3 != 0), x[np.arange(130) % 3 != 0])
    same(datasets.concatenate_datasets([whole.select(range(50)), whole.select(range(50, 130))]), x)
    features = datasets.Features(
        {"text": datasets.Value("string"), "vector": datasets.Sequence(datasets.Value("float32"), 12)}
    )
    same(whole.cast(features).with_format("numpy"), x)
    same(whole.with_format("torch") if pytest.importorskip("torch") else whole, x)


def test_options_take_numpy_integers(x):
    one = select(x, np.int64(9), threads=np.int64(2), seed=np.int32(3), memory=np.int64(10**8))
    np.testing.assert_array_equal(one.indices, select(x, 9).indices)
