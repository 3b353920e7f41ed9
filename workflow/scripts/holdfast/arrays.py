"""Arrays on disk, as ``.npy`` files."""

from typing import IO

import numpy as np


def write(file: IO[bytes], array: np.ndarray) -> None:
    """Write an array in numpy's format; a full disk is the OSError that it is, not a count of missing items."""
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(np.ascontiguousarray(array).tobytes())
    file.flush()
