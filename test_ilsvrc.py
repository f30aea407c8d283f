"""Measure the error of ImageNet models: ``python test_ilsvrc.py --help``."""

from trainer import interrupts  # noqa: F401, I001  before what takes time

import os

from trainer import cli, files, values
from trainer.errors import InputError, together


def parser() -> cli.ArgumentParser:
    """Return the parser of the flags."""
    p = cli.ArgumentParser(
        description='Measure the top-1 and top-5 error of an ImageNet model, or of several '
        'together, and write log.json. An image that cannot be read is named and not '
        'counted. EXIF orientation is ignored, as Torch7 did.',
        usage='%(prog)s -m FILE [flags]',
        examples="""
  python test_ilsvrc.py -g 0 -m resnext_50_32x4d.npz --load-data ILSVRC
  python test_ilsvrc.py -m a.npz -m b.npz --ten-crop     # both together
""",
        rare=(
            *('test_batch_divide', 'C', 'd', 'layers', 'features', 'engine', 'precision'),
            *('workers', 'batch'),
        ),
    )
    cli.add_model_flag(p)
    p.add_argument(
        '--load-data',
        '-ld',
        metavar='DIR',
        help='the ILSVRC tree (ImageSets, Annotations, Data), or a folder of class '
        'folders, DIR/val/n01440764/*.JPEG (default: ./ILSVRC)',
    )
    p.add_argument(
        '--save-path',
        '-p',
        metavar='DIR',
        default='./',
        help='folder for log.json (default: %(default)s)',
    )
    cli.add_inference_flags(p, batch=64)
    p.add_argument(
        '--test-batch-divide',
        '-teb',
        type=values.positive(int),
        default=1,
        metavar='N',
        help='split each batch into this many chunks (default: %(default)s)',
    )
    _add_size_flags(p)
    p.add_argument(
        '--features',
        metavar='FILE.npy',
        help='write what enters the classifier instead, one row for each image, '
        'and the list of the images to FILE.json',
    )
    cli.add_evaluation_flags(p)
    cli.add_geometry_flags(p)
    return p


def _add_size_flags(p):
    for flags, what in (
        (('--C', '-c'), 'cardinality'),
        (('--d', '-d'), 'base width'),
        (('--layers', '-l'), 'number of layers'),
    ):
        p.add_argument(
            *flags,
            type=values.positive(int),
            metavar='N',
            help=f'{what}; the file knows it, another is an error',
        )


def _check_output(args):
    """Check that the results can be written, before any image is computed."""
    from trainer import run_folder
    from trainer.inference import evaluation

    if args.features:
        evaluation.check_features(args.features)
        return
    path = os.path.abspath(args.save_path)
    while not os.path.lexists(path):  # it will be made
        path = os.path.dirname(path)
    if not os.path.isdir(path) or not os.access(path, os.W_OK):
        raise InputError(f'-p {args.save_path}: log.json cannot be written there')
    run_folder.check_no_run(args.save_path)


def _arguments():
    """Return the flags, checked."""
    p = parser()
    args = p.parse_args()
    cli.check_workers(p, args)
    if args.features and len(args.load_model) > 1:
        p.error('--features takes one model')
    if args.features and (args.results or args.mistakes):
        p.error('--features measures nothing: leave out --results and --mistakes')
    return args


def main() -> int:
    args = _arguments()
    from trainer.datasets import ilsvrc
    from trainer.inference import evaluation
    from trainer.reports import evaluation_report as report
    from trainer.reports import results
    from trainer.weights import description

    models, images, *_ = together(
        lambda: cli.check_models(args.load_model, args),
        lambda: ilsvrc.find(args.load_data),
        lambda: _check_output(args),
        lambda: results.check(args.results, args.mistakes),
    )
    outputs = {name: getattr(args, name) for name in ('results', 'mistakes', 'features')}
    files.check_apart([*models, *images.paths], **outputs)
    networks = []
    for path in models:
        networks.append(cli.load_network(path, args))
        description.check_flags(networks[-1], path, args.C, args.d, args.layers)
    predictors = cli.make_predictors(networks, args)
    options = {
        'batch': args.batch,
        'divide': args.test_batch_divide,
        'ten_crop': args.ten_crop,
        'workers': args.workers,
    }
    if args.features:
        with report.Progress(len(images)) as progress:
            unreadable = evaluation.save_features(
                args.features, predictors[0], images, progress=progress, **options
            )
        print(report.features_table(args.features, images, unreadable, predictors[0].description))
        return 0
    os.makedirs(args.save_path, exist_ok=True)
    with (
        results.Results(networks[0], images, args.results, args.mistakes) as each,
        report.Progress(len(images)) as progress,
    ):
        found = evaluation.evaluate(predictors, images, progress=progress, each=each, **options)
        written = each.end(found.unreadable)
    files.save_json(
        os.path.join(args.save_path, 'log.json'),
        report.log(found, models, images, networks[0], args.ten_crop),
    )
    print(report.table(found, models, networks[0], args.ten_crop))
    print(*written, sep='\n', end='\n' if written else '')
    return 0


def command() -> None:
    """Run the script; an error that the user can fix ends in one line (:func:`cli.run`)."""
    cli.run(main)


if __name__ == '__main__':
    command()
