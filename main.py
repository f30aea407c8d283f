"""Train a ResNeXt: ``python main.py --help``.

Several processes train one network with ``mpiexec -n 4 python main.py ...``.
"""

import argparse
import os
import sys

from trainer import cli, datasets, recipes, values
from trainer.training import options, processes, run


def parser():
    """Return the parser of the flags; only those that are given appear in its result."""
    defaults = dict(options.DEFAULTS, **recipes.get('original')._asdict())
    p = cli.ArgumentParser(
        description='Train a ResNeXt with Chainer. The defaults are those of --recipe original.',
        formatter_class=argparse.HelpFormatter,
        argument_default=argparse.SUPPRESS,
    )

    def add(group, *flags, help, **kwargs):
        name = flags[0].strip('-').replace('-', '_')
        default = defaults.get(name)
        if default not in (None, False, (), 0):
            default = ' '.join(map(str, default)) if isinstance(default, tuple) else default
            help = f'{help} (default: {default})'
        if name in options.CHOICES:
            kwargs['choices'] = options.CHOICES[name]
        if name in options.TYPES:
            kwargs.setdefault('type', options.TYPES[name])
        group.add_argument(*flags, help=help, **kwargs)

    whole = values.positive(int)
    add(
        p,
        '--recipe',
        choices=[n for n in recipes.available() if n != 'quick'],
        help='train as this source does; every other flag overrides a value of it',
    )
    add(
        p,
        '--quick',
        action='store_true',
        help='a small network on 2,500 pictures that are part of the project: two minutes on a CPU',
    )
    add(p, '--save_path', '-p', metavar='DIR', help='folder for models, snapshots, log, figures')
    add(
        p,
        '--resume',
        nargs='?',
        const=True,
        metavar='DIR',
        help='go on with the run in DIR (default: in -p), with its options',
    )
    add(
        p,
        '--summary',
        action='store_true',
        help="print the network's layers, output sizes, parameters and multiply-adds, and end",
    )
    add(
        p,
        '--gpu',
        '-g',
        help='GPU number, -1 for the CPU; several processes take this one and the next',
    )
    add(
        p,
        '--engine',
        help='what computes: on a CPU onednn (extra cpu), numpy or reference, on a GPU cudnn '
        '(extra cuda13) or reference (default: the first of them that can be used)',
    )
    add(
        p,
        '--precision',
        help='true float32; by cudnn TF32, or float16 with float32 sums (mixed); by onednn '
        'bfloat16 with float32 sums, where the CPU has it (default: mixed by cudnn, else float32)',
    )
    add(p, '--seed', help='of the initial weights, the order and the augmentation')
    add(
        p,
        '--workers',
        metavar='N',
        help='processes that load data; 0: the main one does (default: 0 on a CPU, else up to 4)',
    )
    add(
        p,
        '--threads',
        metavar='N',
        help='threads of BLAS on a CPU (default: as BLAS decides; 1 with --quick)',
    )

    g = p.add_argument_group('network')
    add(
        g,
        '--network',
        help="the 2017 program's for CIFAR, the paper's for CIFAR, or the paper's for ImageNet",
    )
    add(g, '--depth', '--layers', help='layers: 9n + 2 for CIFAR; 50, 101 or 152 for ilsvrc')
    add(g, '--block_num', nargs='+', metavar='N', help='blocks in each stage, instead of --depth')
    add(g, '--C', '-C', help='cardinality')
    add(g, '--d', '-d', help='base width')
    add(g, '--multi', '-multi', type=whole, help='multiplier of the output channels')
    add(
        g,
        '--widen_factor',
        type=whole,
        help='output channels of the first stage, in units of 64 (paper)',
    )
    add(g, '--shortcut', help='type of the shortcuts')
    add(g, '--initialization', help='initial weights, as which source draws them')

    g = p.add_argument_group('data')
    add(g, '--dataset', choices=[n for n in datasets.available() if n != 'quick'], help='dataset')
    add(
        g,
        '--data',
        metavar='PATH',
        help='folder or archive with the dataset, instead of downloading it once; for --dataset '
        'folder one of class folders, DIR/train/<class> and DIR/val/<class>, or DIR/<class>, of '
        'which a fifth is then kept for testing',
    )
    add(g, '--preprocessing', metavar='CLASS', help='a class of data_augmentation')
    add(
        g,
        '--sampling',
        help="'original' draws each batch anew and visits 63 %% of the pictures in an epoch; "
        "'full-batches' leaves out the last, smaller one",
    )

    g = p.add_argument_group('training')
    add(g, '--epoch', '-e', help='last epoch')
    add(g, '--batch', '-b', help='pictures in a batch, of all processes together')
    add(g, '--batch_scaling', help="what another batch than the recipe's scales")
    add(g, '--train_batch_divide', '-trb', help='compute each batch in so many chunks')
    add(g, '--test_batch_divide', '-teb', help='the same for testing')
    add(g, '--optimizer', help='SGD as Chainer has it, or as Torch has it')
    add(g, '--momentum', help='momentum')
    add(g, '--weight_decay', help='weight decay, on all parameters')
    add(
        g,
        '--label_smoothing',
        metavar='SHARE',
        help='spread this share of each label over all classes',
    )
    add(
        g,
        '--ema_decay',
        metavar='DECAY',
        help='evaluate and save a moving average of the weights of this decay; 0: the weights',
    )

    g = p.add_argument_group('learning rate')
    add(g, '--lr', '-lr', help='learning rate at the start')
    add(
        g,
        '--lr_schedule',
        help='divided by 10 after the epochs --lr_steps, after every '
        '--lr_period epochs, or falling along a cosine that begins anew every --lr_period',
    )
    add(
        g,
        '--lr_steps',
        nargs='*',
        metavar='EPOCH',
        help='epochs, or shares of all epochs where they are below 1',
    )
    add(g, '--lr_period', metavar='EPOCHS', help='the same')
    add(g, '--lr_min', help='where the cosine ends')
    add(g, '--warmup', metavar='EPOCHS', help='climb from 0, update by update, in so many epochs')
    add(
        g,
        '--schedule_epoch',
        metavar='EPOCHS',
        help='all epochs that shares are of (default: the first -e of the run)',
    )

    g = p.add_argument_group('transfer: other classes for a network that is trained already')
    add(
        g,
        '--retrain',
        dest='load_model',
        metavar='FILE',
        help='start from the weights in this file, npz, Torch7, PyTorch or safetensors (the same '
        'as -m)',
    )
    add(
        g,
        '--reset-classifier',
        action='store_true',
        help="give it a new classifier, for the dataset's classes",
    )
    add(
        g,
        '--freeze',
        nargs='+',
        metavar='LAYER',
        help='leave these layers as they are, batch normalisation too: stem, stage1, '
        'stage2/block1, ...',
    )
    add(
        g,
        '--head_lr',
        '--head-lr',
        metavar='TIMES',
        help='the classifier learns so many times as fast as the rest',
    )

    g = p.add_argument_group('going on by hand, as in 2017')
    add(g, '--load_model', '-m', metavar='FILE', help='start from the weights in this file')
    add(
        g,
        '--load_optimizer',
        '-o',
        metavar='FILE',
        help="the optimizer's state: a snapshot, or a file of Chainer's save_npz",
    )
    add(g, '--load_log', '-l', metavar='FILE', help='log.json of the epochs before -s')
    add(g, '--start_epoch', '-s', help='first epoch')
    return p


def flags():
    """Return the flags that are given, checked."""
    p = parser()
    given = vars(p.parse_args())
    if isinstance(given.get('resume'), str):
        folder = given['resume']
        if not os.path.isdir(folder):
            p.error(f'--resume {folder}: there is no such folder')
        if given.setdefault('save_path', folder) != folder:
            p.error('--resume {} and -p {} name two folders'.format(folder, given['save_path']))
    return given


def main():
    with processes.first_speaks():
        given = flags()
    sys.stdout.reconfigure(errors='backslashreplace')  # names of files may be no text
    resume = bool(given.pop('resume', False))
    if given.pop('summary', False):
        print(run.summary(resume=resume, **given))
        return 0
    return 0 if run.train(resume=resume, **given) else 130


def command():
    """Run the script; an error that the user can mend ends in one line (:func:`cli.run`)."""
    cli.run(main)


if __name__ == '__main__':
    command()
