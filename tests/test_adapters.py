"""Selections inside other libraries' pipelines, with these libraries themselves: the rows are those of select()."""

import numpy as np
import pytest

import smartgpu
from smartgpu.adapters import hf

N, K = 200, 12
HOW = {"backend": "numpy", "threads": 1}


@pytest.fixture
def x(rng):
    return rng.standard_normal((N, 8)).astype(np.float32)


@pytest.fixture
def expected(x):
    return smartgpu.select(x, K, **HOW)


def test_hugging_face_datasets(x, expected):
    datasets = pytest.importorskip("datasets")
    pool = datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(N)], "embedding": x.tolist()})
    selection = smartgpu.select(pool, K, **HOW)
    rows = hf.chosen(pool, selection)
    assert rows["text"][:] == [f"row {i}" for i in expected.indices]
    assert rows[hf.RANK][:] == list(range(K)) and rows[hf.GAIN][:] == expected.gains.tolist()
    with pytest.raises(ValueError, match="dataset must have the 200 rows that were selected from, got 3"):
        hf.chosen(pool.select(range(3)), selection)


def test_datatrove(x, expected):
    pytest.importorskip("datatrove")
    from datatrove.data import Document

    from smartgpu.adapters.datatrove import SmartSelect

    documents = [
        Document(text=f"row {i}", id=str(i), metadata={"embedding": x[i].tolist()}) for i in range(N)
    ]
    step = SmartSelect(K, **HOW)
    found = list(step.run(iter(documents)))
    assert [int(document.id) for document in found] == expected.indices.tolist()
    assert [document.metadata[hf.RANK] for document in found] == list(range(K))
    assert [document.metadata[hf.GAIN] for document in found] == expected.gains.tolist()
    assert list(SmartSelect(K).run(iter(()))) == []
    with pytest.raises(ValueError, match="document '0' has no metadata 'vector'"):
        list(SmartSelect(K, "vector").run(iter(documents)))


def test_datatrove_in_its_executor(x, expected, tmp_path):
    pytest.importorskip("datatrove")
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor

    from smartgpu.adapters.datatrove import SmartSelect

    documents = [
        Document(text=f"row {i}", id=str(i), metadata={"embedding": x[i].tolist()}) for i in range(N)
    ]
    seen = []

    def collect(data, rank, world_size):
        for document in data:
            seen.append(int(document.id))
            yield document

    steps = [documents, SmartSelect(K, **HOW), collect]
    LocalPipelineExecutor(steps, tasks=1, logging_dir=str(tmp_path / "log")).run()
    assert seen == expected.indices.tolist()


def batches(x, sizes):
    """The pool as NeMo-Curator's tasks, of so many documents each."""
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("nemo_curator")
    from nemo_curator.tasks import DocumentBatch

    ends = np.cumsum(sizes)
    table = pa.table({"id": np.arange(len(x)), "embeddings": pa.array(list(x))})
    return [DocumentBatch("pool", table.slice(end - m, m)) for end, m in zip(ends, sizes, strict=True)]


def test_nemo_curator(x, expected):
    (task,) = batches(x, [N])
    from nemo_curator.tasks import DocumentBatch

    from smartgpu.adapters.curator import SmartSelect

    stage = SmartSelect(K, **HOW)
    frame = task.to_pandas().set_index(
        np.arange(N) % 7
    )  # as a filter before it leaves it: rows by place, not by name
    for each in (task, DocumentBatch("pool", frame, _metadata={"kept": 1})):
        found = stage.process(each)
        assert found.data["id"].tolist() == expected.indices.tolist()
        assert found.data[hf.RANK].tolist() == list(range(K))
        assert found.data[hf.GAIN].tolist() == expected.gains.tolist()
    assert found._metadata == {"kept": 1} and hf.RANK not in frame
    assert SmartSelect(0.06, **HOW).process(task).data["id"].tolist() == expected.indices.tolist()
    assert stage.process_batch(batches(x, [0, 0])) == [None, None]
    with pytest.raises(ValueError, match="task '' of 'pool' has no column 'vector', only id, embeddings"):
        SmartSelect(K, "vector").process(task)
    frame.loc[frame["id"] == 5, "embeddings"] = None
    with pytest.raises(ValueError, match="column 'embeddings': row 5 is null"):
        stage.process(DocumentBatch("pool", frame))


@pytest.mark.slow
def test_nemo_curator_in_its_executor(x, expected):
    """From all tasks together; each goes on with its own documents, and those that are left with none do not."""
    sizes = (90, 0, 109, 1)
    tasks = batches(x, sizes)
    import ray
    from nemo_curator.backends.ray_data import RayDataExecutor
    from nemo_curator.pipeline import Pipeline

    from smartgpu.adapters.curator import SmartSelect

    assert N - 1 not in expected.indices  # the last task's only document
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        stage = SmartSelect(K, **HOW).with_(batch_size=len(sizes))
        found = Pipeline("choose", stages=[stage]).run(RayDataExecutor(), initial_tasks=tasks)
    finally:
        ray.shutdown()
    parts = [expected.indices < 90, (expected.indices >= 90) & (expected.indices < 199)]
    assert len(found) == len(parts)
    for task, part in zip(found, parts, strict=True):
        assert task.data["id"].tolist() == expected.indices[part].tolist()
        assert task.data[hf.RANK].tolist() == np.flatnonzero(part).tolist()
        assert task.data[hf.GAIN].tolist() == expected.gains[part].tolist()


@pytest.mark.slow
def test_ray_data(x, expected):
    pytest.importorskip("ray.data")
    import ray

    from smartgpu.adapters import ray_data

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        items = [{"id": i, "embedding": x[i]} for i in range(N)]
        dataset = ray.data.from_items(items, override_num_blocks=7)
        assert np.array_equal(ray_data.read_embeddings(dataset), x)
        rows = ray_data.select_rows(dataset, K, **HOW).take_all()
        assert [row["id"] for row in rows] == expected.indices.tolist()
        assert [row[hf.GAIN] for row in rows] == expected.gains.tolist()
        assert [row[hf.RANK] for row in rows] == list(range(K))
        with pytest.raises(
            ValueError, match="column must be one of the dataset's, id, embedding: got 'vector'"
        ):
            ray_data.read_embeddings(dataset, "vector")
    finally:
        ray.shutdown()
