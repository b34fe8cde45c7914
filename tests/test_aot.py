"""Kernels compiled ahead of time for GPUs that are not here: instructions, spills, registers and shared memory.

Every launcher of the dense kernels, in every configuration of its table. tests/aot_table.json holds what came out with
the versions in constraints.txt; `python tests/test_aot.py` rewrites it, for review in a diff.
"""

import json
import sys
from pathlib import Path

import aot
import pytest
from conftest import ROOT  # which has set the interpreter switch, also where this file is run as a script

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from smartgpu.kernels import launch, neighbours, similarity, survivors, sweeps
from smartgpu.kernels.similarity import Form

TABLE = ROOT / "tests" / "aot_table.json"
TARGETS = (80, 90, 100)
DEAREST = "exp_euclidean"  # its epilogue takes norms, a root and an exponential
PARAMETERS = {"dot": {"scale": 0.25}, "rbf": {"gamma": 0.5}, "exp_euclidean": {"gamma": 0.5}}

# arithmetic -> (dtype, precision, instruction by target). UTC*MMA is sm_100's tcgen05.mma.
ARITHMETIC = {
    "fp16": ("float16", "ieee", {80: r"HMMA\.16816\.F32", 90: r"HGMMA", 100: r"UTCHMMA"}),
    "bf16": ("bfloat16", "ieee", {80: r"HMMA\.16816\.F32\.BF16", 90: r"HGMMA", 100: r"UTCHMMA"}),
    "tf32": ("float32", "tf32", {80: r"HMMA\.1688\.F32\.TF32", 90: r"HGMMA", 100: r"UTCHMMA"}),
    "tf32x3": ("float32", "tf32x3", {80: r"HMMA\.1688\.F32\.TF32", 90: r"HGMMA", 100: r"UTCHMMA"}),
    "ieee": ("float32", "ieee", {80: r"FFMA", 90: r"FFMA", 100: r"FFMA"}),
}


def launches(arithmetic, kind, d=768, n=5000):
    """What each launcher starts: name -> call. n is no multiple of 16, d and the row stride are."""
    dtype, precision, _ = ARITHMETIC[arithmetic]
    form = Form(kind, precision=precision, **PARAMETERS.get(kind, {}))
    with torch.device("cpu" if launch.INTERPRETED else "cuda"):  # where launchers take them
        x = torch.zeros(n, d, dtype=getattr(torch, dtype))
        y = x.clone()
        norms = torch.zeros(n) if form.distance else None
        level = torch.zeros(n, dtype=torch.int32)
        weights, cols = torch.zeros(n, dtype=torch.int64), torch.zeros(300, dtype=torch.int64)
        ptr = torch.ones(n + 1, dtype=torch.int64)
    both = {"x_squares": norms, "y_squares": norms}
    return {
        "totals": lambda: sweeps.totals(x, y, form, **both),
        "totals weighted": lambda: sweeps.totals(x, y, form, weights=weights, **both),
        "totals symmetric": lambda: sweeps.totals(x, x, form, **both),
        "excess": lambda: sweeps.excess(x, y, level, form, **both),
        "excess weighted": lambda: sweeps.excess(x, y, level, form, weights=weights, **both),
        "excess symmetric": lambda: sweeps.excess(x, x, level, form, **both),
        "excess symmetric weighted": lambda: sweeps.excess(x, x, level, form, weights=weights, **both),
        "excess gathered": lambda: sweeps.excess(x, x, level, form, cols=cols, **both),
        "columns": lambda: sweeps.columns(x, x, cols, form, **both),
        "block": lambda: sweeps.block(x, cols, x, cols, form, **both),
        "row_max": lambda: sweeps.row_max(x, y, form, **both),
        "row_min symmetric": lambda: sweeps.row_min(x, x, form, **both),
        "count": lambda: survivors.count(x, y, level, form, **both),
        "count symmetric": lambda: survivors.count(x, x, level, form, **both),
        "fill": lambda: survivors.fill(x, y, level, ptr, form, **both),
        "fill symmetric": lambda: survivors.fill(x, x, level, ptr, form, **both),
        "top_k": lambda: neighbours.top_k(x, x, 64, form, **both),
        "nearest": lambda: neighbours.nearest(x, x, cols, form, **both),
        "squared_norms": lambda: similarity.squared_norms(x, form),
    }


def jobs(target):
    """label -> job. Every kernel with float16; every configuration once with the dearest kind; every kind; odd d."""
    found = {}

    def add(arithmetic, kind, names, **sizes):
        calls = launches(arithmetic, kind, **sizes)
        for name in names or calls:
            for part, job in enumerate(aot.record(target, launch, calls[name])):
                odd = "".join(f" {letter}={size}" for letter, size in sizes.items())
                found[f"{name}{f' {part + 1}' if part else ''}, {arithmetic} {kind}{odd}"] = job

    add("fp16", "cosine", None)
    of_each_configuration = ["excess", "excess weighted", "excess symmetric", "excess symmetric weighted"]
    of_each_configuration += ["columns", "fill", "fill symmetric", "top_k", "squared_norms"]
    for arithmetic in ARITHMETIC:
        if arithmetic != "bf16":  # float16's configurations
            add(arithmetic, DEAREST, of_each_configuration)
    add("bf16", "cosine", ["excess symmetric"])
    for kind in similarity.KINDS:
        add("fp16", kind, ["excess symmetric"])
    add(
        "fp16", DEAREST, of_each_configuration, d=100
    )  # rows begin at no multiple of 16 elements: "unaligned"
    for arithmetic in ("tf32", "tf32x3", "ieee"):
        add(arithmetic, DEAREST, ["excess symmetric weighted", "fill symmetric", "top_k"], d=77)
    add("fp16", "cosine", ["excess symmetric", "columns"], d=80)  # aligned, the last step of 64 is padded
    return found


def compiled(target):
    wanted = jobs(target)
    return dict(zip(wanted, aot.build(list(wanted.values())), strict=True))


def instruction(label, target):
    return ARITHMETIC[label.split(", ")[1].split()[0]][2][target]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"sm_{t}")
def test_every_configuration_compiles_well(target):
    committed = json.loads(TABLE.read_text())[f"sm_{target}"]
    reports = compiled(target)
    wrong = []
    for label, report in reports.items():
        wrong += [f"{label}: {complaint}" for complaint in report.complaints(target)]
        if not report.count(instruction(label, target)):
            wrong.append(f"{label}: no {instruction(label, target)}")
        if "ieee" not in label and report.count("FFMA"):
            # a dot product off the tensor cores, or a contracted epilogue
            wrong.append(f"{label}: {report.count('FFMA')} FFMA")
        if target == 90 and report.count("HMMA"):
            wrong.append(f"{label}: {report.count('HMMA')} HMMA: not the chain of the kernels that run wgmma")
        known = committed.get(label)
        if known is None:
            wrong.append(f"{label}: not in {TABLE.name}")
            continue
        # compilers differ by a few registers between versions
        if report.registers > 1.1 * known["registers"] + 8:
            wrong.append(f"{label}: {report.registers} registers, {known['registers']} in {TABLE.name}")
        if report.shared > 1.1 * known["shared"] + 1024:
            wrong.append(
                f"{label}: {report.shared} bytes of shared memory, {known['shared']} in {TABLE.name}"
            )
    wrong += [
        f"{label}: in {TABLE.name}, and compiled no more" for label in committed.keys() - reports.keys()
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"sm_{t}")
def test_every_configuration_of_the_table_is_compiled(target, monkeypatch):
    used, config = set(), launch.config
    monkeypatch.setattr(launch, "config", lambda *key: used.add((key[0], key[2])) or config(*key))
    jobs(target)
    table = launch.TABLE[launch.table(target)]
    kernels = {kernel for kernel, _ in table}
    assert used == set(table) == {(k, a) for k in kernels for a in ("half", "tf32", "tf32x3", "ieee")}


def test_the_tuner_writes_what_is_committed_and_needs_a_gpu(capsys, monkeypatch):
    from smartgpu.kernels import tune

    text = Path(launch.__file__).read_text()
    assert tune.MARKED.search(text)[0] == tune.render(launch.TABLE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main(["--kernel", "sweep"]) == 1
    assert "timing needs an NVIDIA GPU" in capsys.readouterr().err
    assert Path(launch.__file__).read_text() == text


def test_the_tuner_walks_to_the_fastest_configuration_that_changes_nothing(monkeypatch):
    from triton.runtime.errors import OutOfResources

    from smartgpu.kernels import tune

    monkeypatch.setattr(launch, "arch", lambda device: 90)
    start, key = launch.LaunchConfig(64, 64, 32, 4, 2), ("sweep", "half")
    monkeypatch.setitem(launch.TABLE[90], key, start)
    wrong = []

    def call():  # what a launch would see
        config = launch.TABLE[90][key]
        if config.num_stages > 4:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return torch.tensor([int(config in wrong)])

    def bench(call, **_):  # faster with larger tiles, more steps ahead, and 4 warps
        c = launch.TABLE[90][key]
        return 1e6 / (c.block_a * c.block_b) / c.num_stages * c.num_warps

    monkeypatch.setattr("triton.testing.do_bench", bench)
    found = tune.best(*key, start, call, lambda line: None)
    assert (found.block_a * found.block_b, found.num_warps, found.num_stages) == (128 * 128, 4, 4)
    assert launch.TABLE[90][key] == start
    wrong.append(launch.LaunchConfig(64, 64, 32, 4, 3))
    with pytest.raises(RuntimeError, match="changes the result"):
        tune.best(*key, start, call, lambda line: None)


if __name__ == "__main__":
    table = {}
    for target in TARGETS:
        table[f"sm_{target}"] = {
            label: {
                "registers": report.registers,
                "shared": report.shared,
                "spills": report.count(aot.SPILL.pattern),
                "instruction": {
                    o: c
                    for o, c in report.instructions.items()
                    if aot.re.match(instruction(label, target), o)
                },
            }
            for label, report in compiled(target).items()
        }
    text = json.dumps(table, indent=1)
    # one line for each kernel
    text = aot.re.sub(r"\{\s+\"registers\"[^{]+\{[^{}]*\}\s+\}", lambda m: " ".join(m[0].split()), text)
    TABLE.write_text(text + "\n")
    sys.stdout.write(f"{TABLE}: {sum(map(len, table.values()))} kernels\n")
