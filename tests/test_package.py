"""What is shipped, where it lands, and who may import whom."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "smartgpu", "kernels", "csrc")


def python(*arguments, cwd, path=None):
    """Runs this Python in a folder where no checkout is on the import path."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy: no build/ and no egg-info land in the checkout."""
    pytest.importorskip("setuptools", minversion="77", reason="building a wheel needs setuptools >= 77")
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignore)
        elif (ROOT / name).is_file():
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy2(ROOT / name, folder / "source" / name)
    pip = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    python(*pip, "--wheel-dir", str(folder), str(folder / "source"), cwd=folder)
    (path,) = folder.glob("smartgpu-*-py3-none-any.whl")
    return path


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel, and with this environment's dependencies behind it."""
    folder = tmp_path_factory.mktemp("fresh")
    python(
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder),
        str(wheel),
        cwd=folder,
    )
    return folder


def test_wheel_holds_everything_and_claims_one_name(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (top,) = (n for n in names if n.endswith(".dist-info/top_level.txt"))
        assert archive.read(top).decode().split() == ["smartgpu"]
    assert {n.split("/")[0].split("-")[0] for n in names} == {"smartgpu"}
    shipped = {n for n in names if n.startswith("smartgpu/")}
    # Every source file of the checkout, at its place in the package.
    for folder, inside in (
        ("smartgpu", "smartgpu"),
        ("kernels", "smartgpu/kernels"),
        ("csrc", "smartgpu/csrc"),
    ):
        files = (p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        missing = {f"{inside}/{p.relative_to(ROOT / folder).as_posix()}" for p in files} - shipped
        assert not missing, f"not in the wheel (pyproject.toml, [tool.setuptools]): {sorted(missing)}"
    assert {"smartgpu/py.typed", "smartgpu/kernels/similarity.py", "smartgpu/csrc/scalar.cuh"} <= shipped
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_wheel_works_from_a_neutral_folder(fresh, tmp_path):
    where = python(
        "-c", "import smartgpu; print(smartgpu.__file__, smartgpu.__version__)", cwd=tmp_path, path=fresh
    )
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert where.split() == [str(fresh / "smartgpu" / "__init__.py"), version]
    assert (fresh / "smartgpu" / "csrc" / "scalar.cuh").is_file()
    assert (fresh / "smartgpu" / "py.typed").is_file()


def test_nobody_claims_kernels(fresh, tmp_path):
    """The import name belongs to a distribution that transformers imports. From the checkout's root, too."""
    code = """
import importlib.util
found = importlib.util.find_spec("kernels")
# at the root, the folder without __init__.py is a namespace: no origin, and no real package later on the path shadowed
print("none" if found is None or found.origin is None else found.origin)
"""
    foreign = python("-c", code, cwd=tmp_path).strip()  # another distribution's, if it is installed here
    assert python("-c", code, cwd=tmp_path, path=fresh).strip() == foreign
    assert python("-c", code, cwd=ROOT, path=fresh).strip() == foreign
    if foreign == "none":
        raises = "import importlib\ntry:\n    import kernels\nexcept ModuleNotFoundError:\n    print('right')"
        assert python("-c", raises, cwd=tmp_path, path=fresh).strip() == "right"


def test_kernels_import_from_the_wheel_and_from_the_checkout(fresh, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    code = "import smartgpu.kernels.similarity as s; print(s.__file__)"
    assert python("-c", code, cwd=tmp_path, path=fresh).strip() == str(
        fresh / "smartgpu/kernels/similarity.py"
    )
    assert python("-c", code, cwd=ROOT).strip() == str(ROOT / "kernels" / "similarity.py")


def test_import_is_light():
    code = "import sys, smartgpu; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = set(python("-c", code, cwd=ROOT, path=ROOT).split())
    third_party = loaded - set(sys.stdlib_module_names) - {"__main__", "smartgpu"}
    heavy = {
        "torch",
        "triton",
        "cupy",
        "pyarrow",
        "sentence_transformers",
        "transformers",
        "datasets",
        "pandas",
    }
    heavy |= {"scipy", "sklearn", "tqdm", "yaml", "safetensors", "plotly", "jinja2", "matplotlib", "numba"}
    heavy |= {"tokenizers"}
    assert not third_party & heavy, f"import smartgpu loads {sorted(third_party & heavy)}"
    assert "numpy" in third_party


# What a module may import while it is being imported; the first pattern that fits a file counts. "smartgpu" stands
# for the package itself, "local" for other files of tests/. Everything may import the standard library.
MAY_IMPORT = (
    ("kernels/**/*.py", {"torch", "triton", "kernels"}),
    ("smartgpu/kernels/__init__.py", set()),
    ("smartgpu/io/*.py", {"smartgpu", "numpy", "pyarrow"}),
    # opened by name only: nothing that `import smartgpu` loads imports these
    *(
        (f"smartgpu/backends/{name}.py", {"smartgpu", "numpy", "torch"})
        for name in (
            "cuda",
            "cuda_batch",
            "cuda_tail",
            "triton",
            "device",
            "device_footprint",
            "device_linear",
            "device_pairs",
            "entries",
            "resident",
            "streaming",
        )
    ),
    ("smartgpu/adapters/datatrove.py", {"smartgpu", "numpy", "datatrove"}),
    ("smartgpu/adapters/curator.py", {"smartgpu", "numpy", "pyarrow", "nemo_curator"}),
    ("smartgpu/sklearn.py", {"smartgpu", "numpy", "sklearn"}),  # asked for by its users
    ("smartgpu/**/*.py", {"smartgpu", "numpy"}),
    # collected on a bare GPU machine too: what else a test needs, it asks for with pytest.importorskip
    ("tests/test_bench.py", {"smartgpu", "numpy", "pytest", "local", "bench"}),
    ("tests/test_outcome.py", {"smartgpu", "numpy", "pytest", "local", "bench"}),
    ("tests/test_scaling.py", {"smartgpu", "numpy", "pytest", "local", "bench"}),
    ("tests/*.py", {"smartgpu", "numpy", "pytest", "local"}),
)
# Within the package, the layers of docs/architecture.md: these modules import no others of smartgpu.
LAYERS = {
    "workers": set(),
    "files": set(),
    "version": set(),
    "constraints": {"constraints", "labels"},
    "reference": set(),
    "similarity": {"features"},  # for a type alone
    "features": {"similarity", "workers"},
    "seconds": set(),
    "checkpoint": {"files"},
    "selection": {"files", "version"},
    "options": {"similarity", "backends"},  # the names that they list
    "backends": {
        *("backends", "constraints", "features", "files", "kernels", "shares", "similarity", "version"),
        "workers",
    },
    "objectives": {
        *("arrays", "similarity", "objectives", "backends", "workers", "checkpoint", "constraints", "labels"),
        *("features", "shares", "sparse"),
    },
    "sparse": set(),
    "graph": {"backends", "job", "options", "similarity", "workers"},
    # signatures and translations, on top of what computes
    "compat": {
        *("api", "arrays", "compat", "constraints", "graph", "heuristics", "job", "maximize", "objectives"),
        *("options", "sieve", "similarity", "sparse", "version", "workers"),
    },
    "heuristics": {"constraints", "maximize", "objectives", "options", "selecting", "similarity", "workers"},
    "near": {"arrays", "backends", "checkpoint", "job", "objectives", "reference"},
    "maximize": {"constraints", "objectives", "checkpoint"},
    "labels": set(),
    "alpha": {"backends", "objectives", "options", "selecting", "selection", "similarity"},
    "baselines": {
        *("api", "arrays", "backends", "constraints", "job", "objectives", "options"),
        *("selecting", "selection", "similarity"),
    },
    "tokens": set(),
    "parts": {"constraints", "job", "labels", "near", "selecting", "selection"},
    "many": {
        *("arrays", "checkpoint", "constraints", "groups", "job", "labels", "near", "objectives", "options"),
        *("parts", "ranks", "selection", "similarity"),
    },
    "groups": {
        *("arrays", "backends", "job", "objectives", "options", "parts", "selection", "similarity"),
        *("together", "workers"),
    },
    "ranks": {"shares"},
    "shares": set(),
    "partition": {
        *("arrays", "backends", "checkpoint", "job", "labels", "objectives", "options", "partition_rounds"),
        *("ranks", "selecting", "selection", "similarity", "workers"),
    },
    "partition_rounds": {
        *("backends", "checkpoint", "groups", "job", "labels", "objectives", "options", "ranks", "selecting"),
        *("similarity", "workers"),
    },
    "together": {"backends", "job", "objectives", "options", "parts", "selection", "similarity"},
    # on top of what anybody may call, but for the checked arguments that its many selections share
    "mixture": {
        *(
            "api",
            "arrays",
            "backends",
            "checkpoint",
            "constraints",
            "files",
            "groups",
            "job",
            "labels",
            "many",
            "mixture",
            "near",
            "objectives",
        ),
        *("options", "parts", "ranks", "seconds", "selection", "similarity", "workers"),
    },
    # measures with the primitives that evaluate() uses
    "reporting": {
        *("arrays", "backends", "constraints", "files", "job", "labels", "mixture", "objectives", "options"),
        *("reporting", "selecting", "selection", "similarity", "version"),
    },
    "adapters": {"adapters", "api", "io", "selection"},
    "exports": {"exports", "files", "io", "similarity"},
    "sieve": {
        *(
            "arrays",
            "backends",
            "job",
            "objectives",
            "options",
            "selecting",
            "selection",
            "sieve",
            "similarity",
        ),
        "workers",
    },
}


def imports(path):
    """Dotted names imported at module level (under if and try as well), without those only for type checkers."""
    skipped, found = set(), set()

    def visit(node):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
            skipped.add(ast.literal_eval(node.args[0]).split(".")[0])
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parent.parts
            base = list(package[: len(package) + 1 - node.level]) if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            found.update(
                [f"{module}.{alias.name}" for alias in node.names] if module == "smartgpu" else [module]
            )
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return {name for name in found if name.split(".")[0] not in skipped}


def files():
    listed = {}
    for pattern, allowed in MAY_IMPORT:
        for path in sorted(ROOT.glob(pattern)):
            listed.setdefault(path, allowed)
    return listed


@pytest.mark.parametrize("path", [pytest.param(p, id=p.relative_to(ROOT).as_posix()) for p in files()])
def test_imports_keep_to_the_rules(path):
    allowed = files()[path]
    local = {p.stem for p in (ROOT / "tests").glob("*.py")} if "local" in allowed else set()
    names = imports(path)
    wrong = {n for n in names if n.split(".")[0] not in allowed | local | set(sys.stdlib_module_names)}
    assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}; allowed: {sorted(allowed)}"
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "smartgpu" and parts[1] in LAYERS:
        inner = {n.split(".")[1] for n in names if n.startswith("smartgpu.")}
        beyond = inner - LAYERS[parts[1]]
        assert not beyond, (
            f"smartgpu.{parts[1]} imports smartgpu.{sorted(beyond)}: against docs/architecture.md"
        )
