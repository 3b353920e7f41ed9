"""Packed batches: where the sequences of a batch stand.

Token ids of a batch come in one behind the other, one state a token goes out; there is no padding anywhere.
Inside, the sequences stand in order of length (:class:`Packing`), so that those of equal length are one plain
view ``[sequences, tokens, ...]`` and attention needs neither a mask nor an index in any layer.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


class Packing:
    """Where the sequences of one batch stand, worked out once for all layers.

    Attributes:
        sequences: How many there are.
        longest_tokens: Tokens of the longest.
        lengths: Tokens of each, in the order of the packing: ascending.
        positions: int64 [T], the place of each token in its sequence.
        bounds: int32 [sequences + 1], the row where each sequence begins, and T.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        """Order the sequences by length; ``lengths`` in tokens, at least 1 each.

        Raises:
            ValueError: no sequence, or an empty one.
        """
        if len(lengths) == 0 or min(lengths) < 1:
            raise ValueError("a batch needs at least one sequence and every sequence a token")
        given = np.asarray(lengths, np.int64)  # NumPy: torch would wake its threads for each of these small steps
        order = np.argsort(given, kind="stable")
        ordered = given[order]
        starts, bounds = given.cumsum() - given, np.append(0, ordered.cumsum())
        positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], ordered)
        rows = np.repeat(starts[order], ordered) + positions
        self.sequences, self.longest_tokens = len(lengths), int(ordered[-1])
        self.lengths: list[int] = ordered.tolist()
        on_device = [torch.from_numpy(array).to(device) for array in (positions, bounds.astype(np.int32), rows, order)]
        self.positions, self.bounds, self._rows, self._order = on_device

    def arrange(self, tokens: Tensor) -> Tensor:
        """Rows of the caller's order brought into the order of the packing.

        Raises:
            ValueError: another number of rows than the lengths add up to.
        """
        if len(tokens) != len(self._rows):
            raise ValueError(f"{len(tokens)} tokens, but the lengths add up to {len(self._rows)}")
        return tokens.to(self._rows.device)[self._rows]

    def restore(self, x: Tensor) -> Tensor:
        """Rows brought back into the caller's order."""
        restored = torch.empty_like(x)
        restored[self._rows] = x
        return restored

    def split(self, x: Tensor) -> Iterator[Tensor]:
        """A view [sequences, tokens, ...] for every distinct length, in the order of the packing."""
        first = 0
        for tokens, sequences in Counter(self.lengths).items():
            yield x[first : first + sequences * tokens].view(sequences, tokens, *x.shape[1:])
            first += sequences * tokens

    def parts(self, limit_tokens: int) -> Iterator[tuple[slice, "Packing"]]:
        """Rows and packing of consecutive parts of at most ``limit_tokens``, or of one longer sequence."""
        first = row = 0
        while first < self.sequences:
            last, tokens = first + 1, self.lengths[first]
            while last < self.sequences and tokens + self.lengths[last] <= limit_tokens:
                tokens += self.lengths[last]
                last += 1
            yield slice(row, row + tokens), Packing(self.lengths[first:last], self.positions.device)
            first, row = last, row + tokens

    def restore_rows(self, x: Tensor, around: int | None) -> Tensor:
        """What was pooled, brought from the order of the packing back into the caller's order.

        Args:
            x: A row a sequence, or a row a residue.
            around: None where there is a row a sequence; otherwise special tokens of each, which have no row.
        """
        restored = torch.empty_like(x)
        if around is None:
            restored[self._order] = x
            return restored
        counts = torch.tensor(self.lengths, device=x.device) - around
        in_order = torch.empty_like(counts)
        in_order[self._order] = counts
        starts = (in_order.cumsum(0) - in_order)[self._order]
        within = torch.arange(len(x), device=x.device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        restored[torch.repeat_interleave(starts, counts) + within] = x
        return restored
