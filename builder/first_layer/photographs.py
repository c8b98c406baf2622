"""Natural images for the first-layer response: exact crops of three free photographs.

The photographs are files of scikit-image, which needs no network for them and says of each:

- `astronaut` (512 x 512): NASA Great Images; no known copyright restrictions, public domain.
- `chelsea` (300 x 451), a cat: by Stefan van der Walt, CC0.
- `coffee` (400 x 600), a cup on a wooden table: by Rachel Michetti, CC0.

All three are PNG: lossless, so every machine reads the same pixels (a JPEG depends on its decoder).
Crops are reduced by whole factors, as sums of uint8 blocks, so that no resampling library has a
say either: the images are the same bits everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from builder.errors import UsageError

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")
"""Names of the photographs in `skimage.data`."""


def _tiles(photograph: npt.NDArray[np.uint8], size: int) -> Iterator[npt.NDArray[np.float32]]:
    """Square crops of one photograph: the largest first, then at half the scale, down to 1:1.

    Args:
        photograph: uint8 (height, width, 3).
        size: height and width of a crop, in pixels.

    Yields:
        float32 (3, size, size) in [0, 1]. Crops of one scale lie side by side, centred.
    """
    height, width, _ = photograph.shape
    factor = min(height, width) // size
    while factor >= 1:
        side = factor * size
        rows, columns = height // side, width // side
        top, left = (height - rows * side) // 2, (width - columns * side) // 2
        for i in range(rows * columns):
            y, x = top + i // columns * side, left + i % columns * side
            blocks = photograph[y : y + side, x : x + side].reshape(size, factor, size, factor, 3)
            mean = blocks.sum((1, 3), dtype=np.int64) / (255 * factor**2)
            yield mean.transpose(2, 0, 1).astype(np.float32)
        factor //= 2


def natural_images(image_size: int, n_images: int) -> npt.NDArray[np.float32]:
    """Up to `n_images` natural images, taken from the photographs in turn.

    Args:
        image_size: height and width, in pixels.
        n_images: how many at most; there are 749 of 32 x 32, and 9 of 224 x 224.

    Returns:
        float32 (n, 3, image_size, image_size), RGB in [0, 1].

    Raises:
        UsageError: `n_images` is not positive, or `image_size` exceeds the photographs.
    """
    if n_images < 1:
        raise UsageError(f"n_images is {n_images}; expected at least 1.")
    from skimage import data

    sources = [_tiles(getattr(data, name)(), image_size) for name in PHOTOGRAPHS]
    images: list[npt.NDArray[np.float32]] = []
    while sources and len(images) < n_images:
        for source in list(sources):
            tile = next(source, None)
            if tile is None:
                sources.remove(source)
            else:
                images.append(tile)
    if not images:
        raise UsageError(
            f"no photograph has {image_size} x {image_size} pixels.",
            hint="the first-layer response needs an image size of at most 512.",
        )
    return np.stack(images[:n_images])
