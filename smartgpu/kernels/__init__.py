"""Triton kernels and their launchers. In a wheel they lie here; in a checkout, in ``kernels/`` at its top."""

from pathlib import Path

_checkout = Path(__file__).resolve().parents[2]
if (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout / "kernels"))
