"""Pictures as they come: decoding to RGB."""
import os

import numpy as np
from PIL import Image

from trainer.errors import InputError


def load_chw(source):
    """Return a picture as an array (3, height, width), values 0..255.

    Args:
        source: An array of that form (returned as it is), a ``PIL.Image`` or a path.

    Raises:
        trainer.errors.InputError: It is not such an array, or the file cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        source = load(source)
    if isinstance(source, Image.Image):
        return np.asarray(source.convert('RGB')).transpose(2, 0, 1)
    array = np.asarray(source)
    if array.ndim != 3 or array.shape[0] != 3 or not array.size:
        raise InputError('a picture of shape {}; (3, height, width), RGB, 0..255 is wanted'.format(
            array.shape))
    return array


def load(path):
    """Decode a picture file to RGB.

    Returns:
        PIL.Image.Image: Mode RGB.

    Raises:
        trainer.errors.InputError: The file is missing, damaged or no picture.
    """
    try:
        with Image.open(path) as image:
            return image.convert('RGB')
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise InputError('{}: cannot be read as a picture ({})'.format(path, e))
