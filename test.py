"""Test a model on a dataset: ``python test.py --help``."""

from trainer import interrupts  # noqa: F401, I001  before what takes time

import os

from trainer import cli, datasets, files, values
from trainer.errors import together


def parser() -> cli.ArgumentParser:
    """Return the parser of the flags."""
    p = cli.ArgumentParser(
        description='Test a model: loss, top-1 and top-5 error on the test images of a dataset. '
        'An image that cannot be read is named and not counted. Images of class folders are '
        'turned upright by their EXIF orientation, those of ILSVRC are not. Nothing is written '
        'without -p.',
        usage='%(prog)s RUN_OR_MODEL [flags]',
        examples="""
  python test.py runs/a                           # the best model of a run
  python test.py runs/a --epoch 100               # the model of epoch 100
  python test.py model.npz --dataset cifar10      # any file of weights
""",
        rare=('part', 'engine', 'precision', 'workers'),
    )
    natural = values.positive(int)
    p.add_argument(
        'model',
        metavar='RUN_OR_MODEL',
        help="a run's folder (its best model, on its own test images), or a file of weights, "
        'with --dataset',
    )
    p.add_argument(
        '--epoch',
        '-e',
        type=natural,
        metavar='N',
        help="the run's model after this epoch (default: the best)",
    )
    p.add_argument('--dataset', choices=datasets.available(), help="dataset (default: the run's)")
    p.add_argument(
        '--data',
        metavar='PATH',
        help="folder or archive with the dataset (default: the run's, or as main.py)",
    )
    p.add_argument(
        '--part',
        choices=['test', 'train'],
        default='test',
        help='part of the dataset to test on (default: %(default)s)',
    )
    p.add_argument('--save-path', '-p', metavar='DIR', help='write log.json to this folder')
    cli.add_inference_flags(p, batch=64)
    cli.add_evaluation_flags(p)
    return p


def _check_output(folder):
    from trainer import run_folder

    if folder:
        run_folder.check_no_run(folder)


def _arguments():
    """Return the flags, checked, and the folder of the run that is tested, if it is one."""
    p = parser()
    args = p.parse_args()
    cli.check_workers(p, args)
    if not os.path.lexists(args.model):
        p.error(f"{args.model}: there is no such file of weights, and no such run's folder")
    run = args.model if os.path.isdir(args.model) else None
    if run is None and args.dataset is None:
        p.error('--dataset says what the model is to be tested on; a run knows it')
    if run is None and args.epoch is not None:
        p.error(f'--epoch chooses among the models of a run; {args.model} is none')
    return args, run


def main() -> int:
    args, run = _arguments()
    cli.accept_any_name()
    from trainer import devices, run_folder
    from trainer.inference import evaluation
    from trainer.reports import evaluation_report as report
    from trainer.reports import results
    from trainer.weights import sources

    path, *_ = together(
        lambda: sources.local(args.model, args.epoch or 'best'),
        lambda: devices.get(args.gpu),
        lambda: cli.check_precision(args),
        lambda: _check_output(args.save_path),
        lambda: results.check(args.results, args.mistakes),
    )
    network, dataset = together(
        lambda: cli.load_network(path, args),
        lambda: run_folder.dataset(run, args.dataset, args.data),
    )
    images = run_folder.images(dataset, args.part)
    files.check_apart([path, *images.paths], results=args.results, mistakes=args.mistakes)
    predictors = cli.make_predictors([network], args)
    with (
        results.Results(network, images, args.results, args.mistakes) as each,
        report.Progress(len(images)) as progress,
    ):
        found = evaluation.evaluate(
            predictors,
            images,
            args.batch,
            ten_crop=args.ten_crop,
            workers=args.workers,
            progress=progress,
            each=each,
        )
        written = each.end(found.unreadable)
    part = 'all images' if dataset.test is None else f'{args.part} images'
    print('{:<12s} {}, {}'.format('dataset', dataset.name, part))
    print(report.table(found, [path], network, args.ten_crop))
    print(*written, sep='\n', end='\n' if written else '')
    if args.save_path:
        os.makedirs(args.save_path, exist_ok=True)
        files.save_json(
            os.path.join(args.save_path, 'log.json'),
            report.log(found, [path], images, network, args.ten_crop),
        )
    return 0


def command() -> None:
    """Run the script; an error that the user can fix ends in one line (:func:`cli.run`)."""
    cli.run(main)


if __name__ == '__main__':
    command()
