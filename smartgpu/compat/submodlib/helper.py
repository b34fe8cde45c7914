"""Kernels as numpy arrays and scipy matrices, for code that wants to hold them. Functions given data= need none."""

from __future__ import annotations

from typing import Any

import numpy as np

from smartgpu import compat
from smartgpu.compat.submodlib import _checks as check
from smartgpu.graph import graph
from smartgpu.similarity import choose

METHODS = ("sklearn", "scipy", "np", "np_numba", "rowwise", "other")
METRICS = ("cosine", "euclidean", "dot")


def create_kernel(X, metric, mode="dense", num_neigh=-1, n_jobs=1, X_rep=None, method="sklearn"):
    """The similarity of X_rep (X itself where None) to X: (n_rep, n) in X's dtype, or scipy CSR with mode="sparse".

    metric   "cosine" (raw), "euclidean" (exp(-distance / num_features)), "dot"; method "other" means cosine^2 and
             max - distance^2 instead. The other methods are one and the same here. O(n_rep n num_features)
    num_neigh  sparse: entries kept in each row, the element itself among them; -1 keeps all
    Raises ValueError.
    """
    choose(mode, ("dense", "sparse"), "mode")
    if mode == "sparse":
        if X_rep is not None:
            raise ValueError("X_rep is for mode 'dense', got it with mode 'sparse'")
        return create_sparse_kernel(X, metric, num_neigh, n_jobs, method)
    choose(method, METHODS, "method")
    choose(metric, METRICS if method != "other" else METRICS[:2], "metric")
    X, rows = _matrix("X", X), None if X_rep is None else _matrix("X_rep", X_rep)
    if rows is not None and rows.shape[1] != X.shape[1]:
        raise ValueError(f"X_rep must have as many features as X, {X.shape[1]}, got {rows.shape[1]}")
    out = kernel(X, metric, rows) if method != "other" else _other(X, metric, rows)
    return out.astype(np.result_type(X, X if rows is None else rows, np.float32), copy=False)


def create_sparse_kernel(X, metric, num_neigh, n_jobs=1, method="sklearn"):
    """(n, n) scipy CSR: of each row the num_neigh most similar columns by the metric, the row itself among them.

    n x n is never held. O(n^2 num_features). Raises ValueError.
    """
    choose(method, ("sklearn", "np_numba"), "method of a sparse kernel")
    choose(metric, METRICS[:2], "metric of a sparse kernel")
    X = _matrix("X", X)
    if (
        isinstance(num_neigh, bool)
        or not isinstance(num_neigh, (int, np.integer))
        or num_neigh < -1
        or not num_neigh
    ):
        raise ValueError(f"num_neigh must be a positive integer, or -1 for all, got {num_neigh!r}")
    if num_neigh > len(X):
        raise ValueError(f"num_neigh must be at most {len(X)}, the rows of X, got {num_neigh}")
    return _neighbors(X, metric, len(X) if num_neigh == -1 else int(num_neigh))


def create_cluster_kernels(X, metric, cluster_lab=None, num_cluster=None, onlyClusters=False):
    """(clusters, kernels, places): each cluster's elements as a set and its kernel, each element's place in its kernel.

    cluster_lab holds a number in [0, num_cluster) for each row; without it scikit-learn's Birch makes clusters.
    kernels and places are None with onlyClusters. Raises ValueError.
    """
    X = _matrix("X", X)
    choose(metric, METRICS[:2], "metric")
    lab, num = clusters(X, cluster_lab, num_cluster)
    parts = [np.flatnonzero(lab == c) for c in range(num)]
    sets = [set(part.tolist()) for part in parts]
    if onlyClusters:
        return sets, None, None
    places = np.empty(len(X), np.int64)
    for part in parts:
        places[part] = np.arange(len(part))
    return sets, [kernel(X[part], metric) for part in parts], places.tolist()


def _method(name: str):
    def create(X, metric, X_rep=None):
        return create_kernel(X, metric, X_rep=X_rep, method=name)

    create.__name__ = create.__qualname__ = f"create_kernel_dense_{name}"
    create.__doc__ = f"create_kernel(X, metric, X_rep=X_rep, method={name!r})."
    return create


globals().update({f"create_kernel_dense_{name}": _method(name) for name in METHODS})


# -- what the functions use -------------------------------------------------------------------------------------------


def kernel(data: Any, metric: str, rows: Any = None) -> np.ndarray:
    """(r, n) float64 similarities of rows (data where None) to data. A zero row has cosine 0 with everything."""
    x = np.asarray(data, np.float64)
    y = x if rows is None else np.asarray(rows, np.float64)
    if metric == "cosine":
        return _unit(y) @ _unit(x).T
    if metric == "dot":
        return y @ x.T
    return np.exp(-np.sqrt(_squares(x, y, rows is None)) / x.shape[1])


def clusters(data: np.ndarray, given: Any, number: Any) -> tuple[np.ndarray, int]:
    """(n,) cluster numbers, as given or Birch's, and how many clusters there are."""
    if given is not None:
        lab = check.labels("cluster labels", given, len(data), number)
        return lab, int(number)
    if number is not None:
        check.positive("num_clusters", number)
    try:
        from sklearn.cluster import Birch
    except ImportError as error:
        raise ImportError(
            "clusters without labels take scikit-learn: pip install 'smartgpu[sklearn]'"
        ) from error
    made = Birch(n_clusters=number).fit(data)
    return made.predict(data).astype(np.int64), int(number or len(made.subcluster_labels_))


def symmetrised_neighbors(data: Any, metric: str, k: int) -> Any:
    """The kernel of sparse mode: CSR of the k most similar columns of each row, looked up from either side."""
    return symmetrised(_neighbors(np.asarray(data), metric, k))


def symmetrised(given: Any) -> Any:
    """CSR with s_ij as stored, else s_ji as stored, else 0."""
    from scipy import sparse

    s = sparse.csr_matrix(given)
    there = sparse.csr_matrix((np.ones(len(s.data), np.int8), s.indices, s.indptr), shape=s.shape)
    only_back = (there.T - there).tocsr() > 0
    return (s + s.T.multiply(only_back)).tocsr()


def ridged(s: Any, lam: float) -> Any:
    """s + lam I, as it was stored."""
    if not isinstance(s, np.ndarray):
        from scipy import sparse

        return (s + sparse.identity(s.shape[0], format="csr") * lam).tocsr()
    out = s.astype(np.result_type(s, np.float32))
    out[np.diag_indices(len(out))] += lam
    return out


def _neighbors(x: np.ndarray, metric: str, k: int) -> Any:
    """CSR, without entries that are 0."""
    how = {name: value for name, value in compat.options.items() if name in ("backend", "threads", "memory")}
    out = graph(x, k, check.metric(metric), **how)
    out.eliminate_zeros()
    return out


def _other(x: np.ndarray, metric: str, rows: np.ndarray | None) -> np.ndarray:
    if metric == "cosine":
        return np.square(kernel(x, "cosine", rows))
    x, y = x.astype(np.float64), (x if rows is None else rows).astype(np.float64)
    squares = _squares(x, y, rows is None)
    return squares.max() - squares


def _squares(x: np.ndarray, y: np.ndarray, same: bool) -> np.ndarray:
    """(r, n) squared distances of y to x, 0 from a row to itself."""
    centre = x.mean(axis=0)
    x, y = x - centre, y - centre
    out = np.square(y).sum(axis=1)[:, None] + np.square(x).sum(axis=1) - 2 * (y @ x.T)
    np.maximum(out, 0, out=out)
    if same:
        np.fill_diagonal(out, 0.0)
    return out


def _unit(x: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.square(x).sum(axis=1, keepdims=True))
    return x / np.where(norms > 0, norms, 1.0)


def _matrix(name: str, value: Any) -> np.ndarray:
    out = np.asarray(value)
    if out.ndim != 2 or out.dtype.kind not in "fiub":
        raise ValueError(
            f"{name} must be a matrix of numbers, (n, num_features), got shape {out.shape}, {out.dtype}"
        )
    if not np.isfinite(out).all():
        raise ValueError(f"{name} must be finite, got NaN or infinite values")
    return out
