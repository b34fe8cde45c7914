"""What kernels of csrc/ are given against what their sources say they take: names, order, widths and types."""

import re

import hostcuda
import numpy as np
import pytest

import smartgpu

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from smartgpu.backends import cuda, cuda_batch, cuda_tail
from smartgpu.backends.cuda_cache import source
from smartgpu.kernels import launch

STRUCTURES = {"Batch": ("batched_greedy", cuda_batch.FIELDS), "Tail": ("tail", cuda_tail.FIELDS)}
POINTERS = {  # what a pointer may point at, by what the source calls it
    "char": {torch.uint8, torch.float16, torch.bfloat16, torch.float32},
    "int": {torch.int32},
    "long long": {torch.int64},
    "double": {torch.float64},
    "Exchange": {torch.int64},
}
interpreted = pytest.mark.skipif(not launch.INTERPRETED, reason="the kernels of this process run on a GPU")


def fields(name):
    """{field: its type in C++} of a structure, in order."""
    text = re.sub(r"//.*", "", source(STRUCTURES[name][0]))
    body = re.search(rf"struct {name} {{(.*?)}};", text, re.DOTALL)[1]
    out = {}
    for line in filter(str.strip, body.split(";")):
        kind, names = re.fullmatch(r"\s*(?:const )?((?:long )?\w+\*?) ([\w, ]+)\s*", line).groups()
        out |= dict.fromkeys(names.split(", "), kind)
    return out


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_have_the_fields_that_are_packed(name):
    found = fields(name)
    assert tuple(found) == STRUCTURES[name][1]
    assert set(found.values()) <= {f"{kind}*" for kind in POINTERS} | {"long long", "double"}  # 8 bytes each


def test_arguments_are_of_eight_bytes():
    """launch() gives integers of 8 bytes and structures of eights: nothing else may stand in a signature."""
    for name in ("batched_greedy", "tail"):
        text = source(name).replace("\\\n", "\n")
        heads = re.findall(
            r"(?:__global__ void|SMARTGPU_KERNEL) [^;]*?[\w#]+\((const __grid_constant__[^)]*)\) {", text
        )
        assert len(heads) == 3
        for head in heads:
            kinds = [re.sub(r" ?\w+$", "", argument.strip()) for argument in head.split(",")]
            structure = kinds.pop(0).rpartition("::")[2]
            assert structure in STRUCTURES and set(kinds) <= {"int*", "long long"}


def refuse(kind, value):
    """Whether a value is not what a field of this type is to hold."""
    if kind == "double":
        return not isinstance(value, float)
    if kind == "long long":
        return isinstance(value, float) or int(value) != value
    if value is None:
        return False
    fits = (
        isinstance(value, torch.Tensor) and value.dtype in POINTERS[kind[:-1]] and value.data_ptr() % 16 == 0
    )
    return not fits or not value.is_contiguous()


@interpreted
def test_values_are_of_the_types_of_their_fields(monkeypatch, rng):
    """In every launch of selections that use all of them: weights, quality on both sides, log-determinant, a tail."""
    hostcuda.install(monkeypatch)
    seen, pack = {name: set() for name in STRUCTURES}, cuda.pack

    def packed(names, values):
        structure = next(name for name, (_, known) in STRUCTURES.items() if known == names)
        types = fields(structure)
        # probes name what they read alone
        wrong = {n for n in names if values[n] is not None and refuse(types[n], values[n])}
        assert not wrong, {n: (types[n], values[n]) for n in wrong}
        seen[structure] |= {n for n in names if values[n] is not None}
        return pack(names, values)

    monkeypatch.setattr(cuda, "pack", packed)
    monkeypatch.setattr(cuda_batch, "MOST", {True: (10, 100)})  # larger groups go to clusters
    n, labels = 40, np.arange(40) % 5 // 2
    x = (rng.standard_normal((n, 20)) + 0.3).astype(np.float32)
    weighted, quality = smartgpu.FacilityLocation(rng.random(n)), smartgpu.Modular(rng.random(n))
    for spec in (0.2 * quality + 0.8 * weighted + 0.1 * quality, smartgpu.LogDet(), smartgpu.GraphCut()):
        smartgpu.select_many(x, labels, 3, spec, backend="triton")
    smartgpu.select(x, 12, 0.2 * quality + 0.8 * weighted + 0.1 * quality, backend="triton")
    assert seen["Tail"] == set(cuda_tail.FIELDS)
    assert seen["Batch"] == set(cuda_batch.FIELDS)
