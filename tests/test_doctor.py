"""smartgpu doctor: what may be missing is no fault, what is installed and fails is one, and the numbers are checked."""

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, has_gpu

from smartgpu import doctor, questions, reference, select
from smartgpu.backends import BACKENDS
from smartgpu.objectives import FacilityLocation
from smartgpu.similarity import as_similarity

# Packages that are installed, and fail each in its own way.
BROKEN = {
    "cupy": ("raise ImportError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13"),
    "sentence_transformers": ("import os; os.abort()", "died of signal 6"),
    "datasets": ("1 / 0", "ZeroDivisionError: division by zero"),
}


def run(*arguments, path=()):
    """(exit status, stdout, stderr) of `smartgpu doctor`, with these folders in front on the import path."""
    # Without a GPU, kernels would be checked in Triton's interpreter: other tests do that, at length.
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)])}
    command = [sys.executable, "-m", "smartgpu", "doctor", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_healthy_machine():
    start = time.monotonic()
    status, out, err = run("--json")
    assert time.monotonic() - start < 120  # under a minute where nothing else runs
    report = json.loads(out)
    found = {f["name"]: f for f in report["findings"]}
    assert status == 0 and report["healthy"], [f for f in report["findings"] if f["status"] == "wrong"] or err
    assert {f["status"] for f in report["findings"]} <= {"ok", "not available"}
    assert found["numpy"]["detail"] == np.__version__
    assert found["backend numpy"]["status"] == "ok"
    assert {f"backend {name}" for name in BACKENDS} < set(found)
    if not has_gpu():
        assert found["gpu"]["status"] == "not available"
        assert found["backend auto"]["detail"] == "is numpy here"
    if found["triton"]["status"] == "ok":
        assert found["triton compiler"]["status"] == "ok"
        assert int(re.search(r"(\d+) bytes of machine code", found["triton compiler"]["detail"])[1]) > 1000


def test_what_is_installed_and_fails_is_wrong(tmp_path):
    for name, (code, _) in BROKEN.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    status, out, _ = run(path=[tmp_path])
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert status == 1
    for name, (_, told) in BROKEN.items():
        assert (
            lines[name].split()[1] == "wrong"
            and f"import {name} fails" in lines[name]
            and told in lines[name]
        )
    assert set(BROKEN) <= set(
        re.findall(r"\w+", next(x for x in out.splitlines() if x.startswith("wrong: ")))
    )
    assert "backend numpy" in out and lines["numpy"].split()[1] == "ok"  # the rest is looked at all the same


def test_a_broken_compiler_and_nvcc_are_wrong(tmp_path, monkeypatch):
    (tmp_path / "nvcc").write_text("#!/bin/sh\necho 'cannot find cicc' >&2\nexit 1\n")
    (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = doctor._nvcc()
    assert found.status == "wrong" and "cannot find cicc" in found.detail
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    assert doctor._nvcc().status == "not available"
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise OSError('ptxas is not executable')")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = doctor._compiler()
    assert found.status == "wrong" and "ptxas is not executable" in found.detail


def test_what_is_needed_is_wrong_where_it_is_missing():
    gone = "a_package_that_nobody_has"
    assert doctor._package("needed", gone, "pip install it", "").status == "wrong"
    found = doctor._package("extras", gone, "pip install it", "something")
    assert (found.status, found.detail, found.enables) == ("not available", "pip install it", "something")


def test_a_backend_that_computes_wrongly_is_found(rng):
    x = rng.standard_normal((80, 6)).astype(np.float32)
    problem = reference.Problem(x, as_similarity("cosine"), FacilityLocation())
    sel = select(x, 10)

    def compare(indices=sel.indices, gains=sel.gains, value=sel.value):
        questions.compare(indices, gains, value, problem, questions.EXACT, "this")

    compare()
    wrong = (
        ({"indices": sel.indices[::-1]}, "this: pick 0 is row"),
        ({"indices": np.concatenate([sel.indices[:1], sel.indices[:-1]])}, "this: pick 1 is row"),
        ({"gains": sel.gains * 1.001}, "this: pick 0 is row"),
        ({"gains": sel.gains * np.nan}, "this: pick 0 is row"),
        ({"value": sel.value * 1.01}, r"this: f\(S\) is"),
    )
    for changed, message in wrong:
        with pytest.raises(AssertionError, match=message):
            compare(**changed)


def test_a_question_without_an_answer_is_an_error(monkeypatch):
    assert "KeyError" in doctor._ask("no such question")["error"]
    monkeypatch.setattr(doctor, "TIMEOUT", 0.01)
    assert "no answer after" in doctor._ask("importing", "numpy")["error"]


def test_table():
    findings = (
        doctor.Finding("machine", "python", "ok", "3.12"),
        doctor.Finding("extras", "cupy", "not available", "pip install it", "arrays"),
        doctor.Finding("extras", "torch", "wrong", "fails"),
    )
    lines = str(doctor.Report(findings, 3.2)).splitlines()
    assert (
        "  python  ok             3.12" in lines
        and "  cupy    not available  pip install it; arrays" in lines
    )
    assert lines[-1] == "wrong: torch (3 s)"
    assert str(doctor.Report(findings[:2], 3.2)).endswith("nothing is wrong (3 s)")
