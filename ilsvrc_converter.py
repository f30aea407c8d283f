"""Convert weights of ResNeXt: Torch7, PyTorch, safetensors, npz; and write ONNX."""

from trainer import interrupts  # noqa: F401, I001  before what takes time

import os
from typing import TYPE_CHECKING

from trainer import cli, files, values
from trainer.errors import InputError, together
from trainer.networks import table
from trainer.weights import formats, namings

if TYPE_CHECKING:
    from trainer.networks.base import Network


def convert(path: str, entry: str | None = None) -> 'Network':
    """Build the network that a file of weights holds.

    Args:
        path: The file, whatever its name: Torch7, a PyTorch state dict (.pth, .safetensors), or an
            npz of this project or the 2017 program. Nothing in it is executed.
        entry: Name of the state dict, if a PyTorch file holds several.

    Returns:
        :class:`resnext_ilsvrc.ResNext`, or :class:`resnext.PaperResNext` where the file holds the
        CIFAR form; on the CPU.

    Raises:
        trainer.errors.InputError: The file is missing, damaged, or holds what these
            networks cannot represent.
    """
    return formats.read(path, entry)[0]


def parser() -> cli.ArgumentParser:
    """Return the parser of the flags."""
    p = cli.ArgumentParser(
        description=__doc__,
        usage='%(prog)s -i FILE [flags]',
        examples="""
  python ilsvrc_converter.py -t resnext_50_32x4d.t7                  # to npz
  python ilsvrc_converter.py -i best.pth.tar --entry ema_state_dict
  python ilsvrc_converter.py -i resnext_50_32x4d.npz -o r50.onnx
""",
        rare=('layout', 'keep_bn'),
    )
    p.add_argument(
        '-i',
        '--input',
        '-t',
        '--t7',
        dest='input',
        required=True,
        metavar='FILE',
        help="the file to convert (any format and name), a run's folder (its best model), "
        'or the name of published weights',
    )
    cli.add_list_weights_flag(p)
    p.add_argument(
        '-o',
        '--output',
        metavar='FILE',
        default=None,
        help='where to write; by default the name of the input with the '
        "new format's suffix, in the current folder",
    )
    _add_format_flags(p)
    cli.add_geometry_flags(p)
    return p


def _add_format_flags(p):
    p.add_argument(
        '--to',
        type=values.one_of(formats.writable),
        default=None,
        metavar='FORMAT',
        help='the format to write: npz, pth, safetensors or onnx; by default by the suffix '
        'of -o, otherwise npz',
    )
    p.add_argument(
        '--layout',
        choices=['original', 'form-a', 'form-b'],
        default=None,
        help='of npz. original: as the 2017 program loads it; form-a, form-b: '
        "branches apart, as in the paper's figure 3; by default this project's "
        'own, which includes a description of the network',
    )
    p.add_argument(
        '--naming',
        choices=list(namings.table()),
        default=None,
        help='of pth and safetensors: the project whose names to use; by default '
        "torchvision's, for CIFAR networks prlz77's",
    )
    p.add_argument(
        '--entry',
        metavar='NAME',
        default=None,
        help='which state dict of a PyTorch file with several, such as '
        'ema_state_dict; by default state_dict',
    )
    p.add_argument(
        '--keep-bn',
        action='store_true',
        help='of onnx: leave batch normalisation as it is, instead of folding it '
        'into the convolutions',
    )


def _check_suffix(output):
    """Refuse a suffix that no writable format has; without a suffix the format is npz."""
    suffix = os.path.splitext(output)[1]
    if os.path.isdir(output) or not suffix or formats.kind_for(output, None):
        return
    known = [s for fmt in formats.writable().values() for s in fmt.suffixes]
    raise InputError(
        f'-o {output}: no format that is written has the suffix {suffix}; there are '
        f'{", ".join(known)}, and --to says the format of a file of any name'
    )


def _output(args):
    """Return (path, format) to write."""
    from trainer.weights import sources

    output = args.output or ''
    kind = args.to or formats.kind_for(output)
    if not output or os.path.isdir(output):
        name = os.path.basename(os.path.abspath(args.input))
        suffixes = [s for fmt in formats.writable().values() for s in fmt.suffixes]
        if not sources.is_name(args.input):  # whose last part is no suffix
            suffixes.append(os.path.splitext(name)[1])
        for suffix in sorted(suffixes, key=len, reverse=True):
            if suffix and name.lower().endswith(suffix.lower()):
                name = name[: -len(suffix)]
                break
        output = os.path.join(output, name + formats.writable()[kind].suffixes[0])
    if not os.path.isdir(os.path.dirname(output) or '.'):
        raise InputError(f'-o {output}: there is no folder {os.path.dirname(output)}')
    if (
        os.path.exists(output)
        and os.path.exists(args.input)
        and os.path.samefile(output, args.input)
    ):
        raise InputError(f'-o {output}: is the file to convert itself; give another name')
    if args.output and args.to is None:
        _check_suffix(args.output)
    if files.is_read_only(output):
        raise InputError(f'-o {output}: is there and read-only; give another name')
    return output, kind


def main() -> None:
    p = parser()
    args = p.parse_args()
    (output, kind), path = together(lambda: _output(args), lambda: formats.locate(args.input))
    given = {'layout': args.layout, 'naming': args.naming, 'fold': False if args.keep_bn else None}
    options = {name: value for name, value in given.items() if value is not None}
    for name in options:
        formats_with = [n for n, fmt in formats.writable().items() if name in fmt.write_options]
        if kind not in formats_with:
            flag = {'fold': '--keep-bn'}.get(name, f'--{name}')
            p.error(f'{flag} is for {" and ".join(formats_with)}; the output is {kind}')

    files.check_apart([path], o=output)
    network, found = formats.read(path, args.entry)
    cli.set_geometry(network, args)
    print(
        '{}: {} layers (blocks {}), {} form for {}x{} images'.format(
            path,
            network.layers,
            '-'.join(map(str, network.block_num)),
            table.of(network).title,
            found.image_size,
            found.image_size,
        )
    )
    print(
        f'cardinality {network.C}, base width {network.d}, stem {network.stem_width}, '
        f'shortcut type {network.shortcut}, {network.category_num} classes'
    )
    print(f'{network.count_params():,} parameters, {found.details}')
    for note in found.notes:
        print(f'note: {note}')
    formats.write(output, network, kind, **options)
    if args.layout == 'original' and network.round_up_pooling is not None:
        print(
            "note: the 2017 program rounds the max pooling's size up, which Torch7 does not: "
            'it will compute other numbers from this file, and err more'
        )
    held = formats.writable()[kind].holds_classes(**options)
    if network.classes is not None and not held:
        print(f'note: {kind} files hold no names of classes; npz and safetensors do')
    if network.geometry is not None and not held:
        print(f'note: {kind} files hold no geometry of testing; npz and safetensors do')
    how = ''.join(f', {name} {given[name]}' for name in ('layout', 'naming') if given[name])
    print(f'wrote {output} ({kind}{how})')


def command() -> None:
    """Run the script; an error that the user can fix ends in one line (:func:`cli.run`)."""
    cli.run(main)


if __name__ == '__main__':
    command()
