"""Convert a Torch7 file of facebookresearch/ResNeXt into an npz file."""
import os

from trainer import cli
from trainer.errors import InputError
from trainer.weights import torch7


def convert(t7_path):
    """Build the network that a Torch7 file holds.

    Args:
        t7_path (str): The file, under any name.

    Returns:
        trainer.networks.base.Network: :class:`resnext_ilsvrc.ResNext`, or
        :class:`resnext.PaperResNext` where the file holds the CIFAR form; on the CPU.

    Raises:
        trainer.errors.InputError: The file is missing, damaged, or holds what these
            networks cannot represent.
    """
    return torch7.read(t7_path)[0]


def main():
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument('-t', '--t7', required=True, metavar='FILE', help='the Torch7 file')
    parser.add_argument('-o', '--output', metavar='NPZ', default=None,
                        help='where to write; by default the name of the Torch7 file with '
                        '.npz, in the current folder')
    parser.add_argument('--layout', choices=['original'], default=None,
                        help='original: as the 2017 program loads it; by default this '
                        "project's own, which says what network it holds")
    args = parser.parse_args()

    output = args.output or ''
    if not output or os.path.isdir(output):
        name = os.path.splitext(os.path.basename(args.t7))[0] + '.npz'
        output = os.path.join(output, name)
    if not os.path.isdir(os.path.dirname(output) or '.'):
        raise InputError('-o {}: there is no folder {}'.format(output, os.path.dirname(output)))
    if os.path.exists(output) and os.path.exists(args.t7) and os.path.samefile(output, args.t7):
        raise InputError('-o {}: is the Torch7 file itself; give another name'.format(output))

    network, found = torch7.read(args.t7)
    print('{}: {} layers (blocks {}), {} form for {}x{} pictures'.format(
        args.t7, network.layers, '-'.join(map(str, network.block_num)),
        'CIFAR' if network.round_up_pooling is None else 'ImageNet',
        found.picture_size, found.picture_size))
    print('cardinality {}, base width {}, stem {}, shortcut type {}, {} classes'.format(
        network.C, network.d, network.stem_width, found.shortcut, network.category_num))
    print('{:,} parameters, {}'.format(network.count_params(), found.tensors))
    network.save_model(output, layout=args.layout)
    if args.layout == 'original':
        print('note: the 2017 program rounds the max pooling\'s size up, which Torch7 does not: '
              'it will compute other numbers from this file, and err more')
    print('wrote {}'.format(output))


if __name__ == '__main__':
    cli.run(main)
