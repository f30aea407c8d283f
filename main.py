"""Train a ResNeXt on CIFAR: ``python main.py --help``."""
import argparse
import sys

from trainer import cli, datasets, recipes
from trainer.training import run


def parser():
    """Return the parser of the flags; only those that are given appear in its result."""
    original = recipes.get('original')._asdict()
    defaults = dict(run.DEFAULTS, **original)
    p = cli.ArgumentParser(description='Train a ResNeXt on CIFAR with Chainer.',
                           formatter_class=argparse.HelpFormatter,
                           argument_default=argparse.SUPPRESS)

    def add(*flags, help, **kwargs):
        default = defaults.get(flags[0].strip('-').replace('-', '_'))
        if default not in (None, False):
            default = ' '.join(map(str, default)) if isinstance(default, tuple) else default
            help = '{} (default: {})'.format(help, default)
        p.add_argument(*flags, help=help, **kwargs)

    natural, number = cli.positive(int), cli.positive(float)
    add('--load_model', '-m', metavar='FILE', help='start from the weights in this npz file')
    add('--load_optimizer', '-o', metavar='FILE',
        help="the optimizer's state: a snapshot, or a file of Chainer's save_npz")
    add('--load_log', '-l', metavar='FILE', help='log.json of the epochs before -s')
    add('--save_path', '-p', metavar='DIR', help='folder for models, snapshots, log, figures')
    add('--epoch', '-e', type=natural, help='last epoch')
    add('--batch', '-b', type=natural, help='pictures in a batch')
    add('--gpu', '-g', type=int, help='GPU number, -1 for the CPU')
    add('--start_epoch', '-s', type=natural, help='first epoch')
    add('--train_batch_divide', '-trb', type=natural,
        help='compute each batch in so many chunks')
    add('--test_batch_divide', '-teb', type=natural, help='the same for testing')
    add('--lr', '-lr', type=number, help='learning rate at the start')
    add('--lr_steps', type=int, nargs='*', metavar='EPOCH',
        help='divide it by 10 after these epochs')
    add('--momentum', type=float, help='momentum')
    add('--weight_decay', type=float, help='weight decay, on all parameters')
    add('--C', '-C', type=natural, help='cardinality')
    add('--d', '-d', type=natural, help='base width')
    add('--multi', '-multi', type=natural, help='multiplier of the output channels')
    add('--block_num', type=natural, nargs='+', metavar='N', help='blocks in each stage')
    add('--dataset', choices=[n for n in datasets.available() if n != 'quick'], help='dataset')
    add('--data', metavar='PATH',
        help='folder or archive with the dataset, instead of downloading it once')
    add('--quick', action='store_true',
        help='a small network on 2,500 pictures that are part of the project: two minutes on a CPU')
    add('--seed', type=int, help='of the initial weights, the order and the augmentation')
    add('--sampling', choices=run.SAMPLINGS,
        help="'original' draws each batch anew and visits 63 %% of the pictures in an epoch")
    add('--workers', type=int, metavar='N',
        help='processes that load data; 0 loads in the main one (default: 0 on a CPU, else up to 4)')
    add('--resume', nargs='?', const=True, metavar='DIR',
        help='go on with the run in DIR (default: in -p), with its options')
    return p


def main():
    p = parser()
    given = vars(p.parse_args())
    if given.get('seed', 0) < 0 or given.get('workers', 0) < 0:
        p.error('--seed and --workers take 0 or more')
    resume = given.pop('resume', False)
    if isinstance(resume, str):
        if given.setdefault('save_path', resume) != resume:
            p.error('--resume {} and -p {} name two folders'.format(resume, given['save_path']))
    return 0 if run.train(resume=bool(resume), **given) else 130


if __name__ == '__main__':
    sys.exit(cli.run(main))
