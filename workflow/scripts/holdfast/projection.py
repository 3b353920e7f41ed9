"""The projection of embeddings to a plane, to be looked at: principal components, or UMAP where it is asked for."""

import numpy as np

from .errors import ConfigError

METHODS = ("pca", "umap")
UMAP_COMPONENTS = 50


def pca(matrix: np.ndarray, components: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Principal components, by the smaller of the two products of the centred matrix with itself.

    The sign of an axis is free; here the point farthest from the middle lies on the positive side.

    Args:
        matrix: float [N, D].
        components: How many, at most.

    Returns:
        Coordinates, float [N, k], and the share of the variance that each explains, float64 [k], where k is
        ``components`` or, where N or D is smaller, that.
    """
    centred = matrix.astype(np.float32)
    centred -= centred.mean(axis=0, dtype=np.float64).astype(np.float32)
    rows, columns = centred.shape
    count = min(components, rows, columns)
    tall = rows > columns
    values, vectors = np.linalg.eigh((centred.T @ centred if tall else centred @ centred.T).astype(np.float64))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1][:, :count]
    total, values = float(values.sum()), values[:count]
    found = centred @ vectors.astype(np.float32) if tall else vectors * np.sqrt(values)
    farthest = found[np.abs(found).argmax(axis=0), np.arange(count)] if rows else np.ones(0)
    return found * np.where(farthest < 0, -1, 1), values / total if total else np.zeros(count)


def umap(matrix: np.ndarray, seed: int) -> np.ndarray:
    """UMAP of the first :data:`UMAP_COMPONENTS` principal components (McInnes et al. 2018, arXiv:1802.03426).

    Args:
        matrix: float [N, D], N at least 3.
        seed: Makes it repeatable, on one thread.

    Returns:
        Coordinates, float32 [N, 2].

    Raises:
        ConfigError: umap-learn is not installed.
    """
    try:
        from umap import UMAP
    except ImportError:
        raise ConfigError(
            "projection is umap, but umap-learn is not installed: pip install umap-learn, or set projection: pca"
        ) from None
    reduced, _ = pca(matrix, UMAP_COMPONENTS)
    neighbours = min(15, len(matrix) - 1)
    start = "spectral" if len(matrix) > 50 else "random"
    fitted: np.ndarray = UMAP(n_neighbors=neighbours, init=start, random_state=seed, n_jobs=1).fit_transform(reduced)
    return fitted
