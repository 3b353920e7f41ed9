"""Holdfast: language models that stay loaded while a Snakemake workflow works through its samples.

For other programs there are :func:`embed`, :func:`open_model` and :func:`read`; all that they need is imported when
they are called.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"  # x-release-please-version
__all__ = ["__version__", "embed", "open_model", "read"]

if TYPE_CHECKING:
    from .models.registry import open_model
    from .results.embeddings import read_embeddings as read
    from .run.by_hand import embed


def __getattr__(name: str) -> Any:
    """Import one of the public functions."""
    if name == "embed":
        from .run.by_hand import embed

        return embed
    if name == "open_model":
        from .models.registry import open_model

        return open_model
    if name == "read":
        from .results.embeddings import read_embeddings

        return read_embeddings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
