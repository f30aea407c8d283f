"""Where weights come from: a file, the folder of a run, or a publisher, by name.

``published.csv`` next to this module has a row for each name: address of the file, first digits of
its SHA-256 digest, its error on ImageNet's validation images for one crop of the given geometry,
and the licence. The last column has the source of the row. A field is empty if the source does not
state it.
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

#: First parts of the names of published weights.
PUBLISHERS = ('torch7', 'torchvision', 'timm', 'chainercv')

_NAME = re.compile('({})/([A-Za-z0-9][\\w.-]*)'.format('|'.join(PUBLISHERS)), re.ASCII)

_RECORD = 'fetched.json'
_CONFIG = 'config.json'
_MOST_CONFIG = 1 << 20

# Torch7's files have 7.6 bytes per parameter, as they include gradients.
_MOST_BYTES_A_PARAMETER = 10

#: Headers of the Hub's redirects: SHA-256 and size of the file.
_HUB_DIGEST, _HUB_SIZE = 'X-Linked-Etag', 'X-Linked-Size'


@dataclasses.dataclass(frozen=True)
class Weights:
    """A row of the table.

    Attributes:
        name: Name for users, such as 'timm/resnext50_32x4d.a1h_in1k'.
        url: Address of the file.
        sha256: First digits of its digest, hexadecimal; '' if none is published.
        parameters: Parameters in millions, including batch normalisation's.
        megabytes: Size of the file, as the source states it; ``None`` if it does not.
        top1_error, top5_error: Error of one crop, percent; ``None``: not published.
        geometry: Geometry for which the error was measured; ``None``: that of the network's
            preprocessing, 224 of 256 pixels.
        licence: Licence of the weights; '' if the source states none.
        source: Source of the row.
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
    """Return name -> row; among the rows of one network the publisher's default comes first."""
    text = importlib.resources.files(__package__).joinpath('published.csv').read_text('utf-8')
    return {row['name']: _weights(row) for row in csv.DictReader(text.splitlines())}


def is_name(path: Path) -> bool:
    """Return whether a path is, or is meant to be, the name of published weights."""
    return bool(_NAME.fullmatch(os.fspath(path))) and not os.path.lexists(path)


def find(name: str) -> Weights:
    """Return the row of a name; a name without its last part means the publisher's default.

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


def of_run(folder: Path, which: str = 'best') -> str:
    """Return the file of a run's model.

    Args:
        folder: The run's folder.
        which: Number of an epoch, 'best', or 'average' as written by ``average.py``.

    Raises:
        trainer.errors.InputError: There is no such model.
    """
    models = os.path.join(folder, 'model')
    if not os.path.isdir(models):
        raise InputError(
            f"{folder}: neither a file of weights nor a run's folder: there is no model in it"
        )
    names = os.listdir(models)
    name = next((n for n in names if n.endswith(f'_{which}.model')), None)
    if name is None:
        raise InputError(
            '{}: no model {} there{}'.format(
                models, which, '' if names else '; there is one after the first epoch'
            )
        )
    return os.path.join(models, name)


def local(path: Path, which: str = 'best') -> Path:
    """Return the file of weights that a user named; published weights are downloaded once.

    Downloads are kept in :func:`trainer.download.folder` and checked at every use.

    Args:
        path: A file, the folder of a run, or a name of :func:`table`.
        which: Model of the run; see :func:`of_run`.

    Raises:
        trainer.errors.InputError: There is no such name or model, or the download failed.
        OSError: The file cannot be written.
    """
    if os.path.isdir(path):
        return of_run(path, which)
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
    """Return whether a file exists and is unchanged since its download."""
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
    fix = 'fetch the file by another way and name it with -m'
    if weights.file == 'model.safetensors':  # of the Hub, which has a config.json next to it
        config = os.path.join(folder, _CONFIG)
        url = weights.url.removesuffix(weights.file) + _CONFIG
        download.get(url, config, fix, _MOST_CONFIG)
        try:
            timm_config.read(config)
        except InputError as e:
            os.remove(config)
            raise InputError(f'{url}: {e}') from e
    most = (16 << 20) + int(_MOST_BYTES_A_PARAMETER * weights.parameters * 1e6)
    got = download.get(
        weights.url,
        path,
        fix,
        most,
        digest=('sha256', weights.sha256),
        attempts=5,
        check=_check_hub,
    )
    record = {'name': weights.name, 'url': weights.url, 'licence': weights.licence}
    files.save_json(os.path.join(folder, _RECORD), record | {'sha256': got.digest})


def _check_hub(got):
    """Check a download against the Hub's headers."""
    for headers in got.headers:
        digest = headers.get(_HUB_DIGEST, '').strip('"').lower()
        if re.fullmatch('[0-9a-f]{64}', digest) and got.digest != digest:
            raise ValueError(f'its SHA-256 is {got.digest[:8]}, and should be {digest[:8]}')
        size = headers.get(_HUB_SIZE, '')
        if re.fullmatch(r'\d{1,15}', size) and got.size != int(size):
            raise ValueError(f'{got.size:,} of {int(size):,} bytes came')


def fetched(path: Path) -> Weights | None:
    """Return the row of a file that :func:`local` has downloaded, or ``None``."""
    folder, file = os.path.split(os.path.abspath(path))
    above, name = os.path.split(folder)
    weights = table().get(f'{os.path.basename(above)}/{name}')
    if weights is None or weights.file != file:
        return None
    return weights if os.path.isfile(os.path.join(folder, _RECORD)) else None


def about(path: Path) -> tuple[Geometry | None, tuple[str, ...]]:
    """Return the test geometry of a file of weights, and notes for the user.

    Args:
        path: A file, from :func:`local`.

    Returns:
        The geometry from timm's ``config.json`` next to a file of the Hub, else from the table,
        else ``None``; and the notes.

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
    """Return a line about the licence of weights."""
    licence = weights.licence or 'not stated by its source'
    return f'{weights.name}: licence {licence}; {weights.source}'
