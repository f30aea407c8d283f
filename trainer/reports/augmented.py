"""Draws training images as the network gets them."""

import numpy as np
from matplotlib.figure import Figure

from trainer.reports import figures
from trainer.transforms import mixing, resize_crop

#: Images in the figure, and images per row.
MOST = 24
_COLUMNS = 6


def visible(preprocessing: type, x: np.ndarray) -> np.ndarray:
    """Undo the normalisation of images.

    Args:
        preprocessing: Their preprocessing, a class of ``data_augmentation``.
        x: float32 (batch, 3, height, width).

    Returns:
        uint8 (batch, height, width, 3). Images that were normalised individually get the full
        contrast, as their means and deviations are no longer known.
    """
    if issubclass(preprocessing, resize_crop.DataAugmentationNormalizeBigger):
        mean, std = (255 * np.array(values) for values in (resize_crop.MEAN, resize_crop.STD))
    elif hasattr(preprocessing, 'mean') and hasattr(preprocessing, 'std'):
        mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    else:
        low, high = (f(x, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
        mean, std = np.zeros((), x.dtype), np.ones((), x.dtype)
        x = 255 * (x - low) / np.maximum(high - low, 1e-12)
    x = x.transpose(0, 2, 3, 1) * std + mean
    return np.rint(x).clip(0, 255).astype(np.uint8)


def titles(classes: list[str], t: np.ndarray, rows: np.ndarray | None = None) -> list[str]:
    """Return a title with the labels of each image.

    Args:
        classes: Names of the classes.
        t: Labels, int (batch,).
        rows: Rows of :mod:`trainer.transforms.mixing`, if images are mixed.
    """
    if rows is None:
        return [figures.plain(classes[label], 26) for label in t]
    share, other = (
        rows[:, mixing.FIELDS.index(name)].astype(kind)
        for name, kind in (('share', float), ('other', int))
    )
    found = []
    for label, own, partner in zip(t, share, other):
        parts = [(own, label), (1 - own, partner)] if label != partner else [(1.0, label)]
        parts = [(part, name) for part, name in parts if round(100 * part)]
        found.append(
            figures.plain(classes[parts[0][1]], 26)
            if len(parts) == 1
            else '\n'.join(
                f'{100 * part:.0f} % {figures.plain(classes[name], 20)}' for part, name in parts
            )
        )
    return found


def draw(images: np.ndarray, words: list[str], path: str) -> None:
    """Draw images with titles.

    Args:
        images: uint8 (images, height, width, 3), at most :data:`MOST`.
        words: Titles of the images.
        path: The file to write; its suffix determines the format.
    """
    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2 * columns, 2.45 * rows), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis('off')
    for axis, image, text in zip(axes.flat, images, words):
        axis.imshow(image)
        axis.set_title(text, fontsize=8, parse_math=False)
    figures.save(figure, path)
