"""The version of the package: the installed one, or that of the checkout's pyproject.toml."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path


def _version() -> str:
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if project.is_file():
        import tomllib

        with open(project, "rb") as file:
            return tomllib.load(file)["project"]["version"]
    return metadata.version("smartgpu")


__version__ = _version()
