"""All formats of weights: recognising, reading and writing.

A format is a module of this package with a ``FORMAT``; no other registration is needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import os
import pkgutil
import tempfile
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from trainer import files
from trainer.errors import InputError

if TYPE_CHECKING:
    from trainer.networks.base import Network
    from trainer.types import Path

#: Where the paper's Torch7 files are published.
PUBLISHED = 'https://github.com/facebookresearch/ResNeXt'


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of files of weights.

    Attributes:
        name: Name for users.
        suffixes: Suffixes of file names, the usual one first.
        recognises: (the first 512 bytes of a file) -> whether the file has the format;
            ``None`` if the format cannot be read.
        read: (path, name of the state dict or ``None``) -> network on the CPU, details such as
            the types of its numbers, height and width of the images for which it was made or
            ``None``, and notes for the user, each a str.
        write: (path, network, ``**options``) -> ``None``; ``None`` if the format cannot be
            written. The file appears whole or not at all.
        write_options: Names of those options.
        has_entries: Whether a file may hold several state dicts.
        holds_classes: (``**write_options``) -> whether the names of classes are written.
    """

    name: str
    suffixes: tuple[str, ...]
    recognises: Callable | None = None
    read: Callable | None = None
    write: Callable | None = None
    write_options: tuple[str, ...] = ()
    has_entries: bool = False
    holds_classes: Callable = lambda **options: False


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds besides the network.

    Attributes:
        format: Name of the format.
        details: Details such as the types of its numbers.
        image_size: Height and width of the images for which the network was made, in pixels.
        notes: Notes for the user, one line each.
    """

    format: str
    details: str
    image_size: int
    notes: tuple[str, ...] = ()


@functools.cache
def available() -> dict[str, Format]:
    """Return name -> format of all modules with a ``FORMAT``."""
    package = __name__.rpartition('.')[0]
    folder = importlib.import_module(package).__path__
    modules = (
        importlib.import_module(f'{package}.{module.name}')
        for module in pkgutil.iter_modules(folder)
        if not module.ispkg
    )
    found = (getattr(module, 'FORMAT', None) for module in modules)
    return {fmt.name: fmt for fmt in found if fmt is not None}


def writable() -> dict[str, Format]:
    """Return the formats that can be written."""
    return {name: fmt for name, fmt in available().items() if fmt.write is not None}


def kind_of(path: Path) -> str:
    """Return the format's name of a file, from its first bytes.

    Args:
        path: See :func:`read`.

    Raises:
        trainer.errors.InputError: The file cannot be read, or has no known format.
    """
    from trainer.weights import sources

    path = sources.local(path)
    try:
        with files.open_regular(path) as f:
            head = f.read(512)
    except OSError as e:
        fix = ''
        if isinstance(e, FileNotFoundError) and str(path).endswith('.t7'):
            fix = f"; the paper's are published at {PUBLISHED}"
        raise InputError(f'{path}: cannot be read ({e.strerror or e}){fix}') from e
    for fmt in available().values():
        if fmt.recognises is not None and fmt.recognises(head):
            return fmt.name
    if head[257:262] == b'ustar':
        raise InputError(
            f'{path}: a tar archive; if PyTorch 0.1 wrote it, load it there and save its '
            'state dict with a later one'
        )
    raise InputError(
        f'{path}: not a file of weights: neither Torch7 (.t7), npz, PyTorch (.pth) nor '
        'safetensors; ONNX is written, not read'
    )


def locate(path: Path) -> Path:
    """Return the file of weights that a user named, after checking that its format is known.

    Args:
        path: See :func:`read`.

    Raises:
        trainer.errors.InputError: There is no such file, or it has no known format.
    """
    from trainer.weights import sources

    path = sources.local(path)
    kind_of(path)
    return path


def read(path: Path, entry: str | None = None, headless: bool = False) -> tuple[Network, Contents]:
    """Build the network in a file, whatever the file's format and name.

    Args:
        path: The file, or what else :func:`trainer.weights.sources.local` accepts.
        entry: Name of the state dict, if a PyTorch file holds several.
        headless: Whether to accept a state dict without a classifier; the network's classifier
            then has one class and no weights.

    Returns:
        The network on the CPU, and :class:`Contents`.

    Raises:
        trainer.errors.InputError: The file is damaged, or holds no supported network.
    """
    from trainer.weights import description, sources

    path = sources.local(path)
    fmt = available()[kind_of(path)]
    if entry is not None and not fmt.has_entries:
        raise InputError(
            f'`entry` {entry}: only PyTorch files have state dicts to choose from; '
            f'{path} is {fmt.name}'
        )
    assert fmt.read is not None  # recognised formats can be read
    network, details, image_size, *notes = fmt.read(path, entry)
    if not network.has_classifier and not headless:
        raise InputError(
            f'{path}: holds a network without its classifier; main.py --retrain with '
            '`reset_classifier` trains a new one'
        )
    geometry, said = sources.about(path)
    if geometry is not None and network.geometry is None:
        description.set_geometry(network, geometry)
    size = network.image_size if network.geometry else image_size or network.image_size
    if network.geometry is not None:
        said += (f'images for testing: {network.geometry}',)
    return network, Contents(fmt.name, details, size, (*notes, *said))


@contextlib.contextmanager
def _on_disk(source):
    """Yield the path of a file; for a file object, that of a temporary copy."""
    if not hasattr(source, 'read'):
        yield source
        return
    name = str(getattr(source, 'name', 'the file object'))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'weights')
        with open(path, 'wb') as f:
            while data := source.read(1 << 20):
                if not isinstance(data, bytes):
                    raise InputError(f"{name}: is open as text; open it with mode 'rb'")
                f.write(data)
        try:
            yield path
        except InputError as e:
            raise InputError(*(line.replace(path, name) for line in e.args)) from e


def load(
    path: Path | IO[bytes], gpu: int = -1, say: Callable[[str], object] | None = None
) -> Network:
    """Load a network from a file of weights; the file determines the network.

    Args:
        path: A file of any supported format, the folder of a run (its best model), the name of
            published weights (:mod:`trainer.weights.sources`), or a file object opened in binary
            mode. For npz files of the 2017 program the architecture follows from the arrays;
            ILSVRC networks get Torch7's pooling, with which their weights were trained: set
            ``round_up_pooling`` to ``True`` for that of the 2017 program.
        gpu: Number of the GPU for the network; negative: the CPU.
        say: Receives notes for the user, such as which of several state dicts was taken.

    Returns:
        The network with its weights.

    Raises:
        trainer.errors.InputError: The file is damaged, or holds no network.
    """
    from trainer import devices

    with _on_disk(path) as file:
        network, found = read(file)
    if say is not None:
        for note in found.notes:
            say(f'note: {note}')
    device = devices.get(gpu)
    device.use()
    network.to_device(device)
    return network


def kind_for(path: str, otherwise: str | None = 'npz') -> str | None:
    """Return the format that a file's suffix stands for, or ``otherwise``."""
    for name, fmt in writable().items():
        if path.lower().endswith(fmt.suffixes):
            return name
    return otherwise


def write(path: str, network: Network, kind: str, **options: Any) -> None:
    """Write a network's weights; the file appears whole or not at all.

    Args:
        path: The file, with any suffix.
        network: The network.
        kind: One of :func:`writable`.
        options: Options of the format: ``layout`` of npz (:func:`trainer.weights.npz.save`),
            ``naming`` of pth and safetensors (:func:`trainer.weights.state_dict.choose`),
            ``fold`` of ONNX (:func:`trainer.weights.onnx.build`).

    Raises:
        trainer.errors.InputError: The format cannot hold the network, or needs a
            package that is not installed.
    """
    write = writable()[kind].write
    assert write is not None
    write(path, network, **options)
