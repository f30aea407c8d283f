"""All formats of weights: which one a file has, reading and writing.

A format is one module of this package with a ``FORMAT``; it is found here by being there.
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

#: Where the paper's Torch7 files are.
PUBLISHED = 'https://github.com/facebookresearch/ResNeXt'


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of files of weights.

    Attributes:
        name: What users call it.
        suffixes: What names of such files end in, the usual one first.
        recognises: (the first 512 bytes of a file) -> whether the file has the format;
            ``None`` where it is not read.
        read: (path, which of several state dicts or ``None``) -> network on the CPU,
            what numbers it has and the like, the height and width of the images that it was
            made for or ``None``, and notes for the user, if any, each a str.
        write: (path, network, ``**options``); ``None`` where it is not written. The file
            appears whole or not at all.
        write_options: The names of those options.
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
    """What a file says beside the network.

    Attributes:
        format: The name of its format.
        details: Types of its numbers, and the like.
        image_size: Height and width of the images it was made for, in pixels.
        notes: What a user should know, a line each.
    """

    format: str
    details: str
    image_size: int
    notes: tuple[str, ...] = ()


@functools.cache
def available() -> dict[str, Format]:
    """Return name -> format of all modules here that have one."""
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
    """Return those that can be written."""
    return {name: fmt for name, fmt in available().items() if fmt.write is not None}


def kind_of(path: Path) -> str:
    """Return the name of the format of a file, by how it begins; published weights are fetched.

    Raises:
        trainer.errors.InputError: It cannot be read, or has none of them.
    """
    from trainer.weights import published

    path = published.local(path)
    try:
        with files.open_regular(path) as f:
            head = f.read(512)
    except OSError as e:
        mend = ''
        if isinstance(e, FileNotFoundError) and str(path).endswith('.t7'):
            mend = f"; the paper's are published at {PUBLISHED}"
        raise InputError(f'{path}: cannot be read ({e.strerror or e}){mend}') from e
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


def read(path: Path, entry: str | None = None, headless: bool = False) -> tuple[Network, Contents]:
    """Build the network that a file holds, whatever its format and name.

    Args:
        path: The file, or a name of :func:`trainer.weights.published.table`.
        entry: Which state dict, of a PyTorch file with several.
        headless: Whether a state dict without a classifier will do; the network's has then
            one class and no weights.

    Returns:
        The network on the CPU, and :class:`Contents`.

    Raises:
        trainer.errors.InputError: It is damaged, or holds no network of ours.
    """
    from trainer.weights import description, published

    path = published.local(path)
    fmt = available()[kind_of(path)]
    if entry is not None and not fmt.has_entries:
        raise InputError(
            f'`entry` {entry}: only PyTorch files have state dicts to choose from; '
            f'{path} is {fmt.name}'
        )
    assert fmt.read is not None  # what is recognised is read
    network, details, image_size, *notes = fmt.read(path, entry)
    if not network.has_classifier and not headless:
        raise InputError(
            f'{path}: holds a network without its classifier; main.py --retrain with '
            '`reset_classifier` trains a new one'
        )
    geometry, said = published.about(path)
    if geometry is not None and network.geometry is None:
        description.set_geometry(network, geometry)
    size = network.image_size if network.geometry else image_size or network.image_size
    if network.geometry is not None:
        said += (f'images for testing: {network.geometry}',)
    return network, Contents(fmt.name, details, size, (*notes, *said))


@contextlib.contextmanager
def _on_disk(source):
    """Yield the path of a file; of a file object, of a copy that is there meanwhile."""
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
    """Load a network from a file of weights, which says what network it holds.

    Args:
        path: A file of any format that :func:`read` reads, or a file object, open in binary, whose
            content it is; or the name of published weights (:mod:`trainer.weights.published`). In
            npz files of the 2017 program the architecture is read off the arrays; ILSVRC networks
            get Torch7's pooling, which their weights were trained with: set ``round_up_pooling`` to
            ``True`` for what that program computes.
        gpu: Where to put it; below 0 is the CPU.
        say: Told what a user should know, such as which of several state dicts was taken.

    Returns:
        The network with its weights.

    Raises:
        trainer.errors.InputError: The file is damaged or not such a file.
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
    """Return the format that the name of a file to write suggests, else ``otherwise``."""
    for name, fmt in writable().items():
        if path.lower().endswith(fmt.suffixes):
            return name
    return otherwise


def write(path: str, network: Network, kind: str, **options: Any) -> None:
    """Write a network's weights; the file appears whole or not at all.

    Args:
        path: The file, any name.
        network: The network.
        kind: One of :func:`writable`.
        options: Those of the format: ``layout`` of npz (:func:`trainer.weights.npz.save`),
            ``naming`` of pth and safetensors (:func:`trainer.weights.state_dict.choose`),
            ``fold`` of ONNX (:func:`trainer.weights.onnx.build`).

    Raises:
        trainer.errors.InputError: The format cannot hold the network, or needs a
            package that is not installed.
    """
    write = writable()[kind].write
    assert write is not None
    write(path, network, **options)
