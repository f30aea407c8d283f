"""Decodes images to RGB."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from trainer import files
from trainer.errors import InputError

if TYPE_CHECKING:
    from trainer.types import Path, Source

# Pillow logs some damage. Python prints log records that nothing handles.
logging.getLogger('PIL').addHandler(logging.NullHandler())

#: Formats that are read. Pillow supports more, some of which start other programs.
FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'AVIF', 'PPM')

#: Suffixes of files in those formats, in lower case.
SUFFIXES = (
    '.jpeg',
    '.jpg',
    '.jpe',
    '.jfif',
    '.png',
    '.gif',
    '.bmp',
    '.tif',
    '.tiff',
    '.webp',
    '.avif',
    '.ppm',
    '.pgm',
    '.pbm',
    '.pnm',
)

#: Most pixels of an image, as a small file may claim any size. Such an image takes up to 5 s
#: and 0.5 GB, as WebP 1 GB.
MAX_PIXELS = 1 << 26

# Formats of which Pillow reads the whole file at once, and the largest such file; a raw image of
# MAX_PIXELS has 0.2 GB.
_READ_WHOLE, _MAX_WHOLE = ('WEBP', 'AVIF'), 1 << 28

#: A JPEG that is decoded at reduced size (:func:`load_shrunk`) is at least this many times as
#: large as needed. With 1.5 the difference is smaller than that of saving once as a JPEG of
#: quality 95, or of bilinear instead of bicubic resizing: a mean of 0.7 to 0.8 of 255 values on
#: photographs; 0.5 with 2, 1.1 with 1.25.
SHRINK_MARGIN = 1.5

# Most pixels over all scans of a progressive JPEG, each of which covers the image; ten are usual.
_MAX_SCANNED = 1 << 30


class Encoded(os.PathLike):
    """An encoded image that is not a file of its own; accepted wherever a path is. Its path is its
    name in messages and lists."""

    __slots__ = ()

    def __str__(self) -> str:
        return os.fspath(self)

    def open(self) -> IO[bytes]:
        """Open the encoded image as a binary file.

        Raises:
            trainer.errors.InputError: The image cannot be read.
        """
        raise NotImplementedError


def open_encoded(path: Path) -> IO[bytes]:
    """Open an image in binary mode: a path, :class:`Upright` or :class:`Encoded`.

    Raises:
        OSError: The file cannot be read.
        trainer.errors.InputError: An :class:`Encoded` image cannot be read.
    """
    source = path.path if isinstance(path, Upright) else path
    return source.open() if isinstance(source, Encoded) else files.open_regular(source)


class Upright(os.PathLike):
    """A path whose image is turned upright by its EXIF orientation; accepted wherever a path is.

    Args:
        path: The file.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        return str(self.path)


#: EXIF orientation -> operation that turns the stored pixels upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Operations that swap height and width.
_SWAPPING = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}


def upright(source: Source) -> Source:
    """Return a source that loads upright, by its EXIF orientation.

    Args:
        source: A path (which becomes :class:`Upright`), a ``PIL.Image`` (which is turned),
            or anything else, which is returned unchanged.
    """
    if isinstance(source, (str, os.PathLike)):
        return Upright(source)
    turn = _turn(source) if isinstance(source, Image.Image) else None
    return source if turn is None else source.transpose(turn)


def _turn(image):
    """Return the operation that turns an image upright, or ``None``."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # the metadata is damaged, which the image need not be
        return None


def load_chw(source: Source) -> np.ndarray:
    """Return an image as an array (3, height, width), values 0..255.

    Args:
        source: Such an array (returned unchanged), a ``PIL.Image`` or a path.

    Raises:
        trainer.errors.InputError: It is another array, or the file cannot be read.
    """
    if isinstance(source, (str, os.PathLike, Image.Image)):
        return np.asarray(load_rgb(source)).transpose(2, 0, 1)
    array = np.asarray(source)
    if array.ndim != 3 or array.shape[0] != 3 or not array.size:
        raise InputError(
            f'an image of shape {array.shape}; (3, height, width), RGB, 0..255 is wanted'
        )
    return array


def load_rgb(source: Source) -> Image.Image:
    """Return an image of any size and mode in RGB.

    Grey is replicated, alpha dropped, 16 bits are cut to the upper 8, and the first image of
    an animation is used. EXIF orientation is ignored, as in the original and Torch7, except
    for :class:`Upright` paths (and TIFF, which Pillow turns).

    Args:
        source: A path, a ``PIL.Image``, or an array, uint8 or uint16, (height, width)
            or (height, width, 1, 2, 3 or 4 channels): grey, grey and alpha, RGB, RGBA.

    Returns:
        The image, in mode RGB.

    Raises:
        trainer.errors.InputError: The file is missing, damaged or not an image, or the
            array has another form.
    """
    if isinstance(source, (str, os.PathLike)):
        return load(source)
    if isinstance(source, Image.Image):
        return _rgb(source)
    array = np.asarray(source)
    if array.ndim == 2:
        array = array[:, :, None]
    if (
        array.ndim != 3
        or not 1 <= array.shape[2] <= 4
        or not array.size
        or (array.dtype not in (np.uint8, np.uint16))
    ):
        raise InputError(
            f'an image of {array.dtype} {np.shape(source)}; uint8 or uint16 (height, width, '
            'channels) is wanted, or (height, width)'
        )
    if array.dtype == np.uint16:
        array = _upper_byte(array)
    colours = 1 if array.shape[2] <= 2 else 3
    return Image.fromarray(np.broadcast_to(array[:, :, :colours], array.shape[:2] + (3,)).copy())


def load_shrunk(
    source: Source, share: Callable[[int, int], float]
) -> tuple[Image.Image, tuple[int, int]]:
    """Like :func:`load_rgb`, for training: a JPEG that will be made much smaller is decoded at
    1/2, 1/4 or 1/8 of its size, which takes half the time or less.

    The difference is not visible (:data:`SHRINK_MARGIN`). If the sides are not multiples of
    2, 4 or 8, the last row and column extend beyond the image by less than one of its pixels.

    Args:
        source: See :func:`load_rgb`.
        share: ``share(height, width)`` returns the share of its full sides that the image will
            have, such as 0.25.

    Returns:
        The image (PIL.Image.Image, mode RGB), and its full (height, width).

    Raises:
        trainer.errors.InputError: See :func:`load_rgb`.
    """
    if isinstance(source, (str, os.PathLike)):
        return _load(source, share)
    image = load_rgb(source)
    return image, (image.height, image.width)


def load(path: Path) -> Image.Image:
    """Decode an image file to RGB; see :func:`load_rgb`.

    Returns:
        The image, in mode RGB.

    Raises:
        trainer.errors.InputError: The file is missing, damaged, not an image of
            :data:`FORMATS`, or has more than :data:`MAX_PIXELS` pixels.
    """
    return _load(path)[0]


def _load(path, share=None):
    try:
        with open_encoded(path) as f, warnings.catch_warnings():
            # Warnings about odd metadata, and about sizes that are refused below.
            warnings.simplefilter('ignore')
            with _open(f) as image:
                _check_size(image, f)
                size = image.height, image.width
                turn = None
                if isinstance(path, Upright) and image.format != 'TIFF':  # Pillow turns those
                    turn = _turn(image)
                if turn in _SWAPPING:
                    size = size[::-1]
                if share is not None and image.format == 'JPEG':
                    _shrink(image, share(*size))
                with _quiet_libtiff() if image.format == 'TIFF' else contextlib.nullcontext():
                    image = _rgb(image)
                return image if turn is None else image.transpose(turn), size
    except InputError as e:
        raise InputError(f'{path}: {e}') from None
    except UnidentifiedImageError:
        raise InputError(
            '{}: not an image, or none that can be read ({})'.format(path, ', '.join(FORMATS))
        ) from None
    except OSError as e:
        raise InputError(
            f'{path}: cannot be read as an image ({(e.strerror or str(e)).strip()})'
        ) from e
    # Damaged files make decoders raise almost any exception.
    except Exception as e:
        raise InputError(
            '{}: cannot be read as an image ({}: {})'.format(
                path, type(e).__name__, ' '.join(str(e).split())[:100]
            )
        ) from e


def _open(f):
    size = os.fstat(f.fileno()).st_size
    formats = FORMATS if size <= _MAX_WHOLE else [x for x in FORMATS if x not in _READ_WHOLE]
    try:
        image = Image.open(f, formats=formats)
    except UnidentifiedImageError:
        if formats is FORMATS:
            raise
        raise InputError(
            f'{size:,} bytes, and no image of {", ".join(formats)}; of others at most '
            f'{_MAX_WHOLE:,} bytes are read'
        ) from None
    if image.format == 'PNG':  # Pillow checks the checksums only here
        image.verify()
        f.seek(0)
        image = Image.open(f, formats=FORMATS)
    return image


def _shrink(image, share):
    """Let a JPEG be decoded at reduced size if possible; see :func:`load_shrunk`."""
    for times in (8, 4, 2):
        if times * share * SHRINK_MARGIN <= 1 and min(image.size) >= times:
            image.draft(None, (image.width // times, image.height // times))
            return


@contextlib.contextmanager
def _quiet_libtiff():
    """Keep libtiff from writing about damaged files to the standard error."""
    try:
        stderr = os.dup(2)
    except OSError:  # there is none
        yield
        return
    try:
        with open(os.devnull, 'wb') as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _check_size(image, f):
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise InputError(
            f'{image.width} x {image.height} pixels; at most {MAX_PIXELS:,} can be read'
        )
    if 'progressive' in image.info and pixels > _MAX_SCANNED >> 16:
        position = f.tell()
        f.seek(0)
        scans = sum(part.count(b'\xff\xda') for part in iter(lambda: f.read(1 << 20), b''))
        f.seek(position)
        if scans * pixels > _MAX_SCANNED:
            raise InputError(
                f'a JPEG of {image.width} x {image.height} pixels in {scans} scans; save it anew'
            )


def _rgb(image):
    if image.mode == 'RGB':
        image.load()  # convert() would make a copy
        return image
    if image.mode.startswith('I'):  # 16 bits, which Pillow would clip at 255
        array = np.asarray(image)
        if array.min() < 0 or array.max() > 0xFFFF:
            raise InputError('an image of 32 bits a channel; save it with 8 or 16')
        return Image.fromarray(_upper_byte(array)).convert('RGB')
    if image.mode == 'F':
        raise InputError('an image of floating-point numbers; save it with 8 or 16 bits a channel')
    return image.convert('RGB')


def _upper_byte(array):
    return (array >> 8).astype(np.uint8)
