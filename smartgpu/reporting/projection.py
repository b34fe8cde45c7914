"""Rows in the plane, for looking at: principal components with fixed signs, or UMAP where it is installed."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu.similarity import Cosine, CosineShifted, CosineSquared, Similarity, choose

PROJECTIONS = ("auto", "pca", "umap")
LEAST = 5  # rows of a UMAP: it is a graph of neighbours
DIGITS = 4  # of coordinates, in units of the spread: the last bits of a product differ between machines


@dataclass(frozen=True)
class Plane:
    """x, y (p,) float64; about: how they were made, as JSON values."""

    x: np.ndarray
    y: np.ndarray
    about: dict[str, Any]


def project(fit: np.ndarray, rows: np.ndarray, kind: Similarity, projection: str, seed: int) -> Plane:
    """(p, d) rows in the plane. "auto" is UMAP where umap-learn is installed, else principal components.

    pca   the two directions in which the rows of `fit` (m, d) vary most; O(m d^2 + d^3). Of either sign of a direction
          the one is taken whose largest coordinate is positive. Cosines see directions only: rows are normalised.
    umap  of `rows` alone, by that library, on one thread from this seed

    Raises ValueError for an unknown projection, ImportError where umap-learn is asked for by name and not installed.
    """
    choose(projection, PROJECTIONS, "projection")
    there = importlib.util.find_spec("umap") is not None
    if projection == "umap" and not there:
        raise ImportError("projection 'umap' needs umap-learn: pip install 'smartgpu[umap]'")
    angular = isinstance(kind, Cosine | CosineShifted | CosineSquared)
    fit, rows = (_prepared(x, angular) for x in (fit, rows))
    if there and projection != "pca" and len(rows) >= LEAST:
        return _umap(rows, angular, seed)
    return _pca(fit, rows)


def _prepared(x: np.ndarray, angular: bool) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if angular:
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        x = np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)
    return x


def _pca(fit: np.ndarray, rows: np.ndarray) -> Plane:
    centre = fit.mean(axis=0)
    centred = fit - centre
    values, vectors = np.linalg.eigh(centred.T @ centred / len(fit))
    axes = vectors[:, ::-1][:, :2]
    largest = np.abs(axes).round(9).argmax(axis=0)  # ties: the first
    axes = axes * np.where(axes[largest, np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    variance = np.maximum(values[::-1], 0)
    at = (rows - centre) @ axes
    if at.shape[1] < 2:
        at = np.column_stack([at[:, 0], np.zeros(len(at))])
    explained = variance[:2] / variance.sum() if variance.sum() > 0 else np.zeros(2)
    return Plane(*_rounded(at).T, {"projection": "pca", "explained": [round(float(v), 6) for v in explained]})


def _umap(rows: np.ndarray, angular: bool, seed: int) -> Plane:
    import umap

    how = {"n_components": 2, "n_neighbors": min(15, len(rows) - 1), "random_state": seed, "n_jobs": 1}
    init = {"init": "random"} if len(rows) < 20 else {}  # the spectral start needs more rows than neighbours
    at = umap.UMAP(metric="cosine" if angular else "euclidean", **how, **init).fit_transform(rows)
    return Plane(*_rounded(np.asarray(at, np.float64)).T, {"projection": "umap", "explained": None})


def _rounded(at: np.ndarray) -> np.ndarray:
    spread = float(np.abs(at).max())
    if not spread > 0 or not np.isfinite(spread):
        return np.zeros_like(at)
    step = 10.0 ** (np.floor(np.log10(spread)) - DIGITS + 1)
    return np.array([[float(f"{v:.{DIGITS + 2}g}") + 0.0 for v in row] for row in np.rint(at / step) * step])
