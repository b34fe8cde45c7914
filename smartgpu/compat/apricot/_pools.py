"""apricot's metrics: what a metric's name makes of data, for this package's similarities.

euclidean: max(D^2) - D^2; cosine: cos^2; correlation ("corr"): r^2; any other of scikit-learn's: max(D) - D, the maxima
over all pairs. With n_neighbors only each row's nearest are kept, itself included, and the maximum is over these:
max(D) - D, also for euclidean; for cosine and correlation D = 1 - cos^2, 1 - r^2. The candidate is the row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from smartgpu.options import bytes_text
from smartgpu.similarity import CosineSquared, MaxMinusSqeuclidean, Precomputed, Similarity
from smartgpu.workers import default_memory

GIVEN = ("precomputed", "ignore")  # X is the similarity itself
BLOCK = 1 << 23  # numbers of a block of a matrix


def as_metric(metric: Any) -> str:
    """The metric's name, "corr" written out. TypeError where it is none."""
    if not isinstance(metric, str):
        raise TypeError(
            f"metric must be a name, such as 'euclidean', 'cosine' or 'precomputed', got {metric!r}"
        )
    return "correlation" if metric == "corr" else metric


def is_sparse(X: Any) -> bool:
    return hasattr(X, "tocsr")


def similarity(X: Any, metric: str, n_neighbors: Any = None) -> tuple[Any, Similarity]:
    """(data, kind) for select(): no n x n matrix for euclidean, cosine and correlation without n_neighbors.

    X is (n, d), or for metric "precomputed" (n, n), dense or sparse. Raises ValueError for a sparse X of features, a
    matrix that is not square, an unknown metric, and one whose n x n matrix does not fit the memory.
    """
    if metric in GIVEN:
        if metric == "precomputed" and X.shape[0] != X.shape[1]:
            raise ValueError(f"X must be square for metric 'precomputed', got shape {tuple(X.shape)}")
        return X.T, Precomputed()  # here columns are the candidates
    if is_sparse(X):
        raise ValueError(
            f"X must be dense for metric {metric!r}: a sparse X is a similarity, metric 'precomputed'"
        )
    if n_neighbors is not None:
        return nearest(X, metric, n_neighbors).T, Precomputed()
    if metric in ("euclidean", "sqeuclidean"):
        return X, MaxMinusSqeuclidean()
    if metric == "cosine":
        return X, CosineSquared()
    if metric == "correlation":
        return centred(X), CosineSquared()
    return matrix(X, metric), Precomputed()


def whole(X: Any, metric: str, n_neighbors: Any = None) -> Any:
    """The similarity matrix, (n, n), the candidate the row: for functions that look at its rows."""
    if metric in GIVEN:
        similarity(X, metric)
        return X
    if is_sparse(X):
        raise ValueError(
            f"X must be dense for metric {metric!r}: a sparse X is a similarity, metric 'precomputed'"
        )
    return matrix(X, metric) if n_neighbors is None else nearest(X, metric, n_neighbors)


def dense(X: Any) -> np.ndarray:
    return X.toarray() if is_sparse(X) else X


def centred(X: np.ndarray) -> np.ndarray:
    """Rows less their means: the cosine of such rows is their correlation."""
    x = np.asarray(X, np.float64)
    x = x - x.mean(axis=1, keepdims=True)
    flat = np.abs(x).max(axis=1) <= 1e-14 * np.abs(np.asarray(X, np.float64)).max(axis=1, initial=0)
    x[flat] = 0.0  # constant rows, but for rounding
    return x


def unit(X: np.ndarray, metric: str) -> np.ndarray:
    """float64 rows of length 1 whose squared products are the similarity; zero rows stay."""
    x = centred(X) if metric == "correlation" else np.asarray(X, np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", x, x))[:, None]
    return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)


def matrix(X: np.ndarray, metric: str) -> np.ndarray:
    """(n, n) float64 similarity, for what needs it whole."""
    n = len(X)
    free = 8 * default_memory()
    if 8 * n * n > free:
        raise ValueError(
            f"metric {metric!r} needs the n x n matrix here: {bytes_text(8 * n * n)} for n = {n}, {bytes_text(free)} "
            "are free; facility location, graph cut and the like need none for euclidean, cosine and correlation"
        )
    if metric in ("cosine", "correlation"):
        return squares(unit(X, metric))
    out = distances(X, None, metric)
    np.subtract(out.max(), out, out=out)
    return out


def squares(u: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    out = u @ (u if others is None else others).T
    return np.multiply(out, out, out=out)


def distances(X: np.ndarray, Y: np.ndarray | None, metric: str) -> np.ndarray:
    """(n, m) float64 distances between rows, squared for euclidean."""
    if metric in ("euclidean", "sqeuclidean"):
        x = np.asarray(X, np.float64)
        centre = x.mean(axis=0)
        x = x - centre
        y = x if Y is None else np.asarray(Y, np.float64) - centre
        out = x @ y.T
        out *= -2
        out += np.einsum("ij,ij->i", x, x)[:, None]
        out += np.einsum("ij,ij->i", y, y)
        np.maximum(out, 0, out=out)
        if Y is None:
            np.fill_diagonal(out, 0)
        return out
    pairwise = _sklearn("metrics", f"metric {metric!r}").pairwise_distances
    return np.asarray(pairwise(X, Y, metric=metric), np.float64)


def nearest(X: np.ndarray, metric: str, n_neighbors: Any) -> Any:
    """The CSR graph of each row's nearest n_neighbors and itself. n_neighbors: an int, or a KNeighborsTransformer."""
    own = not hasattr(n_neighbors, "fit_transform")
    if own:
        if isinstance(n_neighbors, bool) or not isinstance(n_neighbors, (int, np.integer)):
            raise TypeError(f"n_neighbors must be an integer or a KNeighborsTransformer, got {n_neighbors!r}")
        if not 0 < n_neighbors < len(X):
            raise ValueError(f"n_neighbors must lie in [1, {len(X) - 1}], got {n_neighbors}")
    if metric in ("cosine", "correlation"):
        graph = (
            _angles(unit(X, metric), int(n_neighbors))
            if own
            else n_neighbors.fit_transform(1 - matrix(X, metric))
        )
    else:
        if own:
            make = _sklearn("neighbors", "n_neighbors").KNeighborsTransformer
            n_neighbors = make(n_neighbors=int(n_neighbors), metric=metric)
        graph = n_neighbors.fit_transform(X)
    graph.data = graph.data.max() - graph.data
    return graph


def _angles(u: np.ndarray, k: int) -> Any:
    """CSR of 1 - cos^2 of each row to its k nearest and itself, block by block."""
    from scipy.sparse import csr_matrix

    n = len(u)
    near, far = np.empty((n, k + 1), np.int32), np.empty((n, k + 1))
    step = max(1, BLOCK // n)
    for i in range(0, n, step):
        d = 1 - squares(u[i : i + step], u)
        rows = np.arange(len(d))[:, None]
        d[rows[:, 0], i + rows[:, 0]] = 0.0
        cols = np.sort(np.argpartition(d, k, axis=1)[:, : k + 1], axis=1)
        near[i : i + step], far[i : i + step] = cols, d[rows, cols]
    return csr_matrix((far.ravel(), near.ravel(), np.arange(n + 1) * (k + 1)), shape=(n, n))


def _sklearn(module: str, what: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError(f"{what} needs scikit-learn: pip install 'smartgpu[sklearn]'") from error
