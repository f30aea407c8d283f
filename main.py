"""Train a ResNeXt: ``python main.py --help``.

Several processes train one network with ``mpiexec -n 4 python main.py ...``.
"""

from trainer import interrupts  # noqa: F401, I001  before what takes time

import argparse
import os
from typing import Any

from trainer import cli, recipes
from trainer.recipes import flags as option_flags
from trainer.recipes.options import SPECS, Options
from trainer.text import printable
from trainer.training import launch


#: Options that ``--help`` shows.
COMMON = {
    *('recipe', 'quick', 'save_path', 'gpu', 'network', 'depth', 'C', 'd', 'dataset', 'data'),
    *('epoch', 'batch', 'lr', 'load_model', 'reset_classifier', 'freeze'),
}

EXAMPLES = """
  python main.py --quick                 # a small network, in a minute
  python main.py -g 0 -p runs/a          # CIFAR-10 as in 2017, on a GPU
  python main.py --resume runs/a         # go on after an interruption
  python main.py --dataset folder --data photos -p runs/b   # your own images
"""


def parser() -> cli.ArgumentParser:
    """Return the parser of the flags; only those that are given appear in its result."""
    p = cli.ArgumentParser(
        description='Train a ResNeXt with Chainer. The defaults are those of --recipe original.',
        argument_default=argparse.SUPPRESS,
        examples=EXAMPLES,
        rare=[name for name in SPECS if name not in COMMON],
    )
    p.add_argument(
        '--resume',
        nargs='?',
        const=True,
        metavar='DIR',
        help='go on with the run in DIR; with its options (default: in -p)',
    )
    p.add_argument(
        '--summary',
        action='store_true',
        help="describe the network's layers and end; sizes, parameters, multiply-adds",
    )
    cli.add_list_weights_flag(p)
    p.add_argument(
        '--show-augmented', metavar='PNG', help='draw images as training augments them, and end'
    )
    option_flags.add_flags(p, recipes.get(Options.recipe))
    return p


def flags() -> dict[str, Any]:
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


def main() -> int:
    launch.share_cores()
    with launch.first_speaks():
        given = flags()
    cli.accept_any_name()
    from trainer.training import run

    resume = bool(given.pop('resume', False))
    if given.pop('summary', False):
        print(run.summary(resume=resume, **given))
        return 0
    if path := given.pop('show_augmented', None):
        number = run.show_augmented(path, resume=resume, **given)
        print(f'{printable(path)}: {number} images of the first batch')
        return 0
    return 0 if run.train(resume=resume, **given) else 130


def command() -> None:
    """Run the script; an error that the user can fix ends in one line (:func:`cli.run`)."""
    cli.run(main)


if __name__ == '__main__':
    command()
