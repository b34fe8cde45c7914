"""The pages: every block of Python runs, every command that they show is one, every link leads somewhere."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [text for name, text in FENCE.findall(page.read_text()) if name == language]


def commands(page):
    """The smartgpu commands in blocks without a language: whole lines, or after "$ "."""
    found = []
    for text in blocks(page, ""):
        lines = text.replace("\\\n", " ").splitlines()
        prompts = [line[2:] for line in lines if line.startswith("$ ")]
        found += [line for line in prompts or lines if line.startswith("smartgpu ")]
    return found


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """A folder that holds what the pages speak of, small."""
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMARTGPU_CACHE", str(tmp_path / "cache"))
    n = 400
    tasks = [f"task{i % 20}" for i in range(n)]
    table = {
        "instruction": [f"row {i}" for i in range(n)],
        "output": [f"answer {i}" for i in range(n)],
        "task": tasks,
        "tokens": rng.integers(10, 90, n).tolist(),
        "score": rng.random(n).tolist(),
        "source": [("web", "code", "books")[i % 3] for i in range(n)],
    }
    for name in ("alpaca.parquet", "tasks.parquet", "pool.parquet"):
        pq.write_table(pa.table(table), name)
    X = rng.standard_normal((n, 16)).astype(np.float32)
    for name in ("minilm.npy", "embeddings.npy", "x.npy"):
        np.save(name, X)
    np.save("random.npy", rng.choice(n, 50, replace=False))
    pa_rows = pa.table(table).to_pylist()
    import json

    for name in ("pool.jsonl", "data.jsonl"):
        with open(name, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in pa_rows)
    names = list(dict.fromkeys(tasks))
    some = {task: table["instruction"][i : i + 2] for i, task in enumerate(names)}
    return {
        "X": X,
        "labels": tasks,
        "tasks": tasks,
        "np": np,
        "names": names,
        "some": some,
        "L": -rng.random((20, 20)),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_blocks_run(page, somewhere):
    """In the order of the page, in one namespace, beside what it takes as given: a pool of 400 rows of 20 tasks."""
    code = blocks(page, "python")
    if not code:
        pytest.skip("no Python on this page")
    if any("rouge_score" in text for text in code):
        pytest.importorskip("rouge_score")
    names = dict(somewhere)
    for text in code:
        # what the pages take as given: counts are those of large pools
        text = re.sub(r"\b(10_000|10000|5000|1000)\b", "40", text)
        text = re.sub(r"n_tasks=\d+", "n_tasks=5", text).replace(" 64, 40", " 5, 40")
        text = text.replace("prefix(200)", "prefix(20)")
        exec(compile(text, f"{page.name}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_are_commands(page):
    """Their options are those of the command line: parsed, not run."""
    from smartgpu import cli

    shown = commands(page)
    if not shown:
        pytest.skip("no commands on this page")
    for line in shown:
        words = [word for word in shlex.split(line.split("  #")[0])[1:] if word != "..."]
        try:
            cli.parser().parse_args(words)
        except SystemExit as stop:
            pytest.fail(f"{page.name}: {line}: exit {stop.code}")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text())
    targets = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]+)", text)
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing, f"{page.name}: {missing}"


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "--strict",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / "site" / ("" if page.stem == "index" else page.stem) / "index.html").is_file(), (
            page
        )
