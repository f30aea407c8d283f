"""Average the models of a run: ``python average.py --help``."""

from trainer import interrupts  # noqa: F401, I001  before what takes time

import os

from trainer import cli, values
from trainer.errors import InputError
from trainer.text import printable


def parser() -> cli.ArgumentParser:
    """Return the parser of the flags."""
    p = cli.ArgumentParser(
        description='Average the weights of the last or the best models of a run, recompute the '
        'statistics of batch normalisation, and test the result on the test images of the '
        'run. The model is written beside the others.',
        usage='%(prog)s RUN [flags]',
        examples='  python average.py runs/a -n 10',
        rare=('engine', 'precision', 'batch'),
    )
    natural = values.positive(int)
    p.add_argument('run', metavar='RUN', help='folder of a run')
    p.add_argument(
        '-n', type=natural, default=10, metavar='N', help='how many models (default: %(default)s)'
    )
    p.add_argument('--best', action='store_true', help='those of lowest test error, not the last')
    p.add_argument(
        '--images',
        type=natural,
        default=20_000,
        metavar='N',
        help='number of training images, about, for the statistics (default: %(default)s)',
    )
    p.add_argument(
        '--data', metavar='PATH', help="folder or archive with the dataset (default: the run's)"
    )
    p.add_argument(
        '--output',
        '-o',
        metavar='FILE',
        help='the model to write (default: RUN/model/..._average.model)',
    )
    cli.add_inference_flags(p, batch=64)
    return p


def main() -> int:
    args = parser().parse_args()
    cli.accept_any_name()
    from trainer import run_folder
    from trainer.inference import evaluation
    from trainer.reports import evaluation_report as report
    from trainer.training import averaging
    from trainer.weights import formats, sources

    cli.check_precision(args)
    found = averaging.checkpoints(args.run, args.n, args.best)
    output = args.output or found[-1][1].replace(f'_{found[-1][0]}.model', '_average.model')
    if not os.path.isdir(os.path.dirname(output) or '.'):
        raise InputError(f'-o {output}: there is no such folder')
    network, epochs = averaging.average(args.run, args.n, args.best, args.images, args.data)
    network.save_model(output)
    images = run_folder.images(run_folder.dataset(args.run, None, args.data))
    print(f'epochs {", ".join(map(str, epochs))}: averaged in {printable(output)}')
    for name, path in (('best model', sources.of_run(args.run)), ('average', output)):
        (predictor,) = cli.make_predictors([formats.load(path, args.gpu)], args)
        with report.Progress(len(images)) as progress:
            tally = evaluation.evaluate([predictor], images, args.batch, progress=progress).tally
        top1, top5 = report.errors_of(tally)
        print(f'{name:<12s} top-1 error {top1:6.2f} %, top-5 error {top5:6.2f} %', flush=True)
    return 0


def command() -> None:
    """Run the script; an error that the user can fix ends in one line (:func:`cli.run`)."""
    cli.run(main)


if __name__ == '__main__':
    command()
