"""Weights by name: what their publishers say of them, and fetching them once.

``published.csv`` beside this module has a row for each: where the file is, how its SHA-256
digest begins where the publisher says so, its error on ImageNet's validation images by one crop
of the geometry given, and the licence. The source of each row is in its last column. An empty
field is one that its source does not state.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import functools
import importlib.resources
import os
import re
from typing import TYPE_CHECKING

from trainer import download, extras, files
from trainer.errors import InputError
from trainer.transforms.geometry import Geometry
from trainer.weights import timm_config

if TYPE_CHECKING:
    from trainer.types import Path

#: Who publishes: what names begin with.
SOURCES = ('torch7', 'torchvision', 'timm', 'chainercv')

_NAME = re.compile('({})/([A-Za-z0-9][\\w.-]*)'.format('|'.join(SOURCES)), re.ASCII)

#: What is kept beside a file: its digest.
_RECORD = 'fetched.json'
_CONFIG = 'config.json'
_MOST_CONFIG = 1 << 20

# Torch7's files have 7.6 bytes for a parameter: gradients, too.
_MOST_BYTES_A_PARAMETER = 10

#: What the Hub says of a file that lies elsewhere, with the redirect: its SHA-256 and size.
_HUB_DIGEST, _HUB_SIZE = 'X-Linked-Etag', 'X-Linked-Size'


@dataclasses.dataclass(frozen=True)
class Weights:
    """A row of the table.

    Attributes:
        name: What users call it, 'timm/resnext50_32x4d.a1h_in1k'.
        url: Where the file is.
        sha256: How its digest begins, hexadecimal; '' where none is published.
        parameters: Millions, including those of batch normalisation.
        megabytes: Of the file, as the source states it; ``None`` where it does not.
        top1_error, top5_error: Percent, by one crop; ``None``: not published.
        geometry: What the error was measured by; ``None``: as the network's preprocessing has
            it, 224 of 256 pixels.
        licence: Of the weights; '' where the source states none.
        source: Where the row's facts are from.
    """

    name: str
    url: str
    sha256: str
    parameters: float
    megabytes: float | None
    top1_error: float | None
    top5_error: float | None
    geometry: Geometry | None
    licence: str
    source: str

    @property
    def file(self) -> str:
        """Name of the file."""
        return os.path.basename(self.url)


def _weights(row):
    row = dict(row)
    names = [field.name for field in dataclasses.fields(Geometry)]
    given = {name: row.pop(name) for name in names}
    geometry = None
    if given['img_size']:
        kinds = {'img_size': int, 'crop_pct': float, 'interpolation': str}
        held = {name: kind(given[name]) for name, kind in kinds.items()}
        three = {name: map(float, given[name].split()) for name in ('mean', 'std') if given[name]}
        geometry = Geometry(**held, **{name: tuple(numbers) for name, numbers in three.items()})
    for name in ('parameters', 'megabytes', 'top1_error', 'top5_error'):
        row[name] = float(row[name]) if row[name] else None
    return Weights(geometry=geometry, **row)


@functools.cache
def table() -> dict[str, Weights]:
    """Return name -> what is published; of one network the publisher's default comes first."""
    text = importlib.resources.files(__package__).joinpath('published.csv').read_text('utf-8')
    return {row['name']: _weights(row) for row in csv.DictReader(text.splitlines())}


def is_name(path: Path) -> bool:
    """Return whether a path is none, but the name of published weights, or is meant to be."""
    return bool(_NAME.fullmatch(os.fspath(path))) and not os.path.lexists(path)


def find(name: str) -> Weights:
    """Return the row of a name; without its last part, of the publisher's default.

    Raises:
        trainer.errors.InputError: There is no such name.
    """
    known = table()
    if name in known:
        return known[name]
    for full in known:
        if full.startswith(name + '.'):
            return known[full]
    close = [full for full in known if full.startswith(name)][:3]
    close = close or difflib.get_close_matches(name, known, 3, 0.5)
    raise InputError(
        f'{name}: neither a file nor published weights; --list-weights shows these'
        + (f'; close: {", ".join(close)}' if close else '')
    )


def local(path: Path | os.PathLike[str]) -> Path:
    """Return the file that a path means: itself, or published weights, fetched where needed.

    They are kept beside Chainer's datasets (:func:`trainer.download.folder`), and checked
    whenever they are used.

    Args:
        path: A file, or a name of :func:`table`.

    Raises:
        trainer.errors.InputError: There is no such name, or they cannot be had.
        OSError: They cannot be kept.
    """
    if not is_name(path):
        return path
    weights = find(os.fspath(path))
    if weights.file.endswith('.safetensors'):
        extras.need('safetensors', weights.name)
    folder = download.folder('weights', *weights.name.split('/'))
    there = os.path.join(folder, weights.file)
    if not _is_whole(there, weights):
        _fetch(weights, there)
    return there


def _is_whole(path, weights):
    """Tell whether a file is there and is what was fetched."""
    record = os.path.join(os.path.dirname(path), _RECORD)
    if not (os.path.isfile(path) and os.path.isfile(record)):
        return False
    try:
        held = files.read_json(record)
        expected = str(held['sha256'])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return expected.startswith(weights.sha256) and download.digest_of(path, 'sha256') == expected


def _fetch(weights, path):
    folder = os.path.dirname(path)
    mend = 'fetch the file by another way and name it with -m'
    if weights.file == 'model.safetensors':  # the Hub's: what to know of it lies beside it
        config = os.path.join(folder, _CONFIG)
        url = weights.url.removesuffix(weights.file) + _CONFIG
        download.get(url, config, mend, _MOST_CONFIG)
        try:
            timm_config.read(config)
        except InputError as e:
            os.remove(config)
            raise InputError(f'{url}: {e}') from e
    most = (16 << 20) + int(_MOST_BYTES_A_PARAMETER * weights.parameters * 1e6)
    got = download.get(
        weights.url,
        path,
        mend,
        most,
        digest=('sha256', weights.sha256),
        attempts=5,
        check=_check_hub,
    )
    record = {'name': weights.name, 'url': weights.url, 'licence': weights.licence}
    files.save_json(os.path.join(folder, _RECORD), record | {'sha256': got.digest})


def _check_hub(got):
    """Check what came against what the Hub said of it."""
    for headers in got.headers:
        digest = headers.get(_HUB_DIGEST, '').strip('"').lower()
        if re.fullmatch('[0-9a-f]{64}', digest) and got.digest != digest:
            raise ValueError(f'its SHA-256 is {got.digest[:8]}, and should be {digest[:8]}')
        size = headers.get(_HUB_SIZE, '')
        if re.fullmatch(r'\d{1,15}', size) and got.size != int(size):
            raise ValueError(f'{got.size:,} of {int(size):,} bytes came')


def fetched(path: Path) -> Weights | None:
    """Return the row that a file was fetched for by :func:`local`, or ``None``."""
    folder, file = os.path.split(os.path.abspath(path))
    above, name = os.path.split(folder)
    weights = table().get(f'{os.path.basename(above)}/{name}')
    if weights is None or weights.file != file:
        return None
    return weights if os.path.isfile(os.path.join(folder, _RECORD)) else None


def about(path: Path) -> tuple[Geometry | None, tuple[str, ...]]:
    """Return what is known of a file of weights beside its numbers.

    Args:
        path: A file, from :func:`local`.

    Returns:
        The geometry to test by: that of timm's ``config.json`` beside the Hub's file, else of
        the table, else ``None``; and what users are told.

    Raises:
        trainer.errors.InputError: The ``config.json`` cannot be used.
    """
    held = fetched(path)
    geometry, notes = (None, ()) if held is None else (held.geometry, (said(held),))
    config = os.path.join(os.path.dirname(path), _CONFIG)
    if os.path.basename(path) in timm_config.FILES and os.path.isfile(config):
        own = timm_config.read(config)
        geometry = own or geometry
    return geometry, notes


def said(weights: Weights) -> str:
    """Return a line on weights for their user."""
    licence = weights.licence or 'not stated by its source'
    return f'{weights.name}: licence {licence}; {weights.source}'
