"""What the readers of a pool take out of the shared cache, and put in.

When a sample has been read, :meth:`Exchange.fetch` copies what the cache has of its sequences into blocks of the pool;
from then on nothing depends on the cache, whatever is evicted. When the sample is done, :meth:`Exchange.keep` puts in
what had to be computed. A cache that fails costs time and never a sample: what is wrong in it is logged, and computed
again.
"""

import getpass
import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ..errors import ResourceError
from ..models.registry import Prepared
from ..spool.state import Identity
from .batches import Recipe
from .blocks import DIGEST_BYTES, SUFFIX, gather, gather_residues, write_block
from .cache import Cache
from .distinct import DistinctSequences
from .keys import Key, Origin, keys_of
from .segments import SLAB_BYTES, Rows, prefixes
from .shelf import Shelf

FETCHED_BYTES = 2**24
"""Vectors in a block that is made of the cache, about."""
KEPT_BYTES = 2**28
"""Vectors in a new segment, about."""

log = logging.getLogger("holdfast.cache")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, say
        return str(os.getuid())


def _described(sequences: DistinctSequences, prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Of a sample's sequences, the SHA-256 of the tokens, u8 [n, 32], and the residues, int64 [n]."""
    digests = np.frombuffer(b"".join(sequences.digests), np.uint8).reshape(-1, DIGEST_BYTES)
    return digests, sequences.lengths.astype(np.int64) - prepared.around


@dataclass(frozen=True)
class Exchange:
    """What one pool puts into a cache and takes out of it.

    Attributes:
        cache: The cache.
        precision: What the pool's models compute in.
        blocks: Directory of the pool's blocks.
        origin: Where the vectors come from that the pool computes, but for the run and the time.
    """

    cache: Cache
    precision: str
    blocks: Path
    origin: Origin

    @classmethod
    def open(
        cls,
        directory: str | None,
        precision: str,
        blocks: Path,
        pool: Identity,
        spool: Path,
        software: Mapping[str, str],
    ) -> "Exchange | None":
        """Open the cache for a pool, and make it if need be; None without a directory.

        Raises:
            HoldfastError: it cannot be used, see :meth:`Cache.open`.
            OSError: it cannot be made.
        """
        if directory is None:
            return None
        origin = Origin(
            run="",
            pool=pool.pool,
            host=pool.host,
            user=_user(),
            spool=str(spool),
            holdfast=software["holdfast"],
            holdfast_sha256=software["holdfast_sha256"],
            began=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return cls(Cache.open(Path(directory).absolute(), create=True), precision, blocks, origin)

    def fetch(self, recipe: Recipe, prepared: Prepared, sequences: DistinctSequences) -> list[Path]:
        """Copy what the cache has of a sample's sequences into blocks.

        Args:
            recipe: What is asked of the model.
            prepared: The model.
            sequences: The sample's.

        Returns:
            The blocks, which the pool has to take in.

        Raises:
            OSError: a block cannot be written.
        """
        digests, residues = _described(sequences, prepared)
        order = np.argsort(prefixes(digests), kind="stable")
        shelves = self._shelves(recipe, prepared)
        for shelf in shelves:
            order = order[shelf.holds(digests[order])] if len(order) else order
        directory = self.blocks / recipe.key(self.precision)
        written = []
        largest = max((shelf.key for shelf in shelves), key=lambda key: int(key.size_bytes(residues[order]).sum()))
        for part in largest.parts(residues[order], FETCHED_BYTES // len(shelves)):
            wanted, counts = digests[order[part]], residues[order[part]]
            found = [shelf.read(wanted, counts) for shelf in shelves]
            good = np.logical_and.reduce([each.good for each in found])
            if not good.any():
                continue
            path = directory / f"{self.origin.pool}-{uuid.uuid4().hex}{SUFFIX}"
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            arrays = {
                shelf.key.output.name: each.vectors if good.all() else shelf.key.choose(each.vectors, counts, good)
                for shelf, each in zip(shelves, found, strict=True)
            }
            origins = [asdict(origin) for origin in dict.fromkeys(origin for each in found for origin in each.known)]
            write_block(path, wanted[good].tobytes(), counts[good], arrays, origins)
            written.append(path)
        return written

    def keep(
        self,
        recipe: Recipe,
        prepared: Prepared,
        sequences: DistinctSequences,
        paths: list[Path],
        places: np.ndarray,
        computed: np.ndarray,
        run: str,
    ) -> None:
        """Put into the cache what was computed of a sample's sequences, unless it is there.

        Args:
            recipe: What was asked of the model.
            prepared: The model.
            sequences: The sample's.
            paths: Blocks, as :meth:`.blocks.BlockStore.locate` gave them.
            places: Index of the block and row in it for each sequence, int32 [n, 2].
            computed: Which of the sequences were computed and not fetched, bool [n].
            run: Of the workflow that the sample belongs to.
        """
        chosen = np.flatnonzero(computed)
        chosen = chosen[np.lexsort((places[chosen, 1], places[chosen, 0]))]  # block by block
        digests, residues = _described(sequences, prepared)
        try:
            for shelf in self._shelves(recipe, prepared):
                key = shelf.key
                for part in key.parts(residues[chosen], KEPT_BYTES):
                    rows = _without(shelf, digests, residues, chosen[part])
                    if not len(rows):
                        continue
                    reading = gather_residues if key.pooling == "residues" else gather
                    vectors = np.concatenate(list(reading(paths, places, rows, key.output.name)))
                    order = np.argsort(prefixes(digests[rows]), kind="stable")
                    told = Rows(digests[rows[order]], residues[rows[order]], np.zeros(len(rows), np.int32))
                    slabs = _ordered(key, vectors, residues[rows], order)
                    shelf.add(prepared.source, told, [replace(self.origin, run=run)], slabs)
            if len(chosen):
                self.cache.evict()
        except (OSError, ResourceError) as error:
            log.warning("vectors are not kept in the cache: %s", error)

    def _shelves(self, recipe: Recipe, prepared: Prepared) -> list[Shelf]:
        """The shelf of each output of a recipe."""
        keys = keys_of(recipe, prepared, self.precision)
        return [Shelf(self.cache.directory, key, self.cache.access) for key in keys]


def _without(shelf: Shelf, digests: np.ndarray, residues: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Those of some rows whose vectors a shelf does not have, or has with damage."""
    held = rows[shelf.holds(digests[rows])]
    if not len(held):
        return rows
    held = held[np.argsort(prefixes(digests[held]), kind="stable")]
    found = shelf.read(digests[held], residues[held])
    return rows[~np.isin(rows, held[found.good])]


def _ordered(key: Key, vectors: np.ndarray, residues: np.ndarray, order: np.ndarray) -> Iterator[np.ndarray]:
    """Vectors of sequences in another order, slab by slab."""
    for part in key.parts(residues[order], SLAB_BYTES):
        yield key.choose(vectors, residues, order[part])
