"""The figure of the embeddings: projected to a plane by principal components, or by UMAP where it is asked for."""

from collections import Counter
from collections.abc import Mapping

import altair
import numpy as np

from ..errors import ConfigError, how_to_install
from .charts import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALETTE,
    PURPLE,
    SHORT_LABEL,
    SKY,
    VERMILION,
    YELLOW,
    Chart,
    Choices,
    chart_of,
    colours_of,
)
from .tally import Points, Tally

UMAP_COMPONENTS = 50
GROUPS = 7
GRID_CELLS = 90
GROUP_COLOURS = {
    "called virus": VERMILION,
    "called ambiguous": YELLOW,
    "called non-viral": BLUE,
    "labelled virus": ORANGE,
    "labelled non-viral": SKY,
    "contigs": GREY,
    "proteins": GREEN,
    "dna": PURPLE,
}
OTHERS = "others"


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
            f"projection is umap, but umap-learn is not installed; set projection: pca, or run "
            f"{how_to_install('umap-learn')}"
        ) from None
    reduced, _ = pca(matrix, UMAP_COMPONENTS)
    neighbours = min(15, len(matrix) - 1)
    start = "spectral" if len(matrix) > 50 else "random"
    fitted: np.ndarray = UMAP(n_neighbors=neighbours, init=start, random_state=seed, n_jobs=1).fit_transform(reduced)
    return fitted


def embeddings(tally: Tally, choices: Choices) -> Chart | str:
    """A projection of each model's embeddings, as cells of a grid."""
    maps = {model: points for model, points in sorted(tally.points.items()) if len(points.matrix) >= 3}
    if not maps:
        return "Fewer than three sequences are embedded: there is nothing to project."
    kept = {
        group for group, _ in Counter(group for points in maps.values() for group in points.groups).most_common(GROUPS)
    }
    groups = {model: [group if group in kept else OTHERS for group in points.groups] for model, points in maps.items()}
    known = [*GROUP_COLOURS, *sorted(kept - GROUP_COLOURS.keys()), OTHERS]
    met = sorted({group for each in groups.values() for group in each}, key=known.index)
    spare = iter(PALETTE)
    colours = {group: GREY if group == OTHERS else GROUP_COLOURS.get(group) or next(spare) for group in met}
    drawn = [_map(model, points, groups[model], colours, choices) for model, points in maps.items()]
    return altair.concat(*drawn, columns=2)


def _map(model: str, points: Points, groups: list[str], colours: Mapping[str, str], choices: Choices) -> Chart:
    if choices.method == "umap":
        places, titles = umap(points.matrix, choices.seed), ["UMAP 1", "UMAP 2"]
    else:
        places, shares = pca(points.matrix)
        titles = [f"component {number}, {share:.0%} of the variance" for number, share in enumerate(shares, 1)]
    size = float(np.ptp(places, axis=0).max() or 1) / GRID_CELLS
    cells = Counter(zip(*(places / size).round().astype(int).T.tolist(), groups, strict=True))
    values = [
        {"x": round(x * size, 4), "y": round(y * size, 4), "group": group, "sequences": number}
        for (x, y, group), number in cells.items()
    ]
    few = f"{len(points.matrix):,} of {points.rows:,}" if len(points.matrix) < points.rows else f"{points.rows:,}"
    heading = altair.TitleParams(model, fontSize=12, anchor="start", subtitle=f"{few} sequences, seed {choices.seed}")
    legend = altair.Legend(orient="bottom", columns=2, symbolOpacity=1, labelExpr=SHORT_LABEL)
    chart = chart_of(values, width=250, height=250, title=heading).mark_circle(opacity=0.65)
    return chart.encode(
        x=altair.X("x:Q", title=titles[0]).scale(zero=False),
        y=altair.Y("y:Q", title=titles[1]).scale(zero=False),
        size=altair.Size("sequences:Q").scale(range=[16, 160], domainMin=1).legend(None),
        color=colours_of("group", colours, "").legend(legend),
    )
