"""Classify images: ``python predict.py photo.jpg -m model``."""

from trainer import interrupts  # noqa: F401, I001  before what takes time

import json
import os
import sys

from trainer import cli, files, values
from trainer.errors import InputError, together
from trainer.text import printable


def parser() -> cli.ArgumentParser:
    """Return the parser of the flags."""
    p = cli.ArgumentParser(
        description='Classify images: print the likeliest classes of each. Photographs are turned '
        'upright by their EXIF orientation.',
        usage='%(prog)s IMAGE ... -m FILE [flags]',
        examples="""
  python predict.py photo.jpg -m resnext_50_32x4d.npz
  python predict.py photos -m runs/a --draw out.png
""",
        rare=('engine', 'precision', 'batch'),
    )
    natural = values.positive(int)
    p.add_argument(
        'images',
        nargs='+',
        metavar='IMAGE',
        help='an image, or a folder: all images in it and its subfolders',
    )
    cli.add_model_flag(p)
    cli.add_inference_flags(p, batch=16)
    p.add_argument(
        '-k',
        type=natural,
        default=5,
        metavar='N',
        help='classes printed per image (default: %(default)s)',
    )
    cli.add_ten_crop_flag(p)
    cli.add_geometry_flags(p)
    p.add_argument('--json', action='store_true', help='print JSON')
    p.add_argument(
        '--draw', metavar='FILE.png', help='draw each image with the probabilities of its classes'
    )
    p.add_argument(
        '--cam',
        metavar='FILE.png',
        help='draw class activation maps: where the network sees the likeliest classes',
    )
    return p


def _sources(args):
    """Return the images to classify; check that --draw and --cam can show them."""
    from trainer.datasets import folder

    sources = folder.expand(args.images)
    for flag, path in (('--draw', args.draw), ('--cam', args.cam)):
        if path:
            from trainer.reports import drawing

            drawing.check(path, len(sources), flag)
    files.check_apart([*sources, *args.load_model], draw=args.draw, cam=args.cam)
    if args.draw and args.cam and os.path.abspath(args.draw) == os.path.abspath(args.cam):
        raise InputError(f'--cam {args.cam}: --draw writes this file; give another name')
    return sources


def main() -> int:
    p = parser()
    args = p.parse_args()
    if args.cam and (args.ten_crop or len(args.load_model) > 1):
        p.error('--cam takes one model and one crop of each image')
    from trainer.inference import prediction
    from trainer.reports import prediction_report as report

    paths, sources = together(
        lambda: cli.check_models(args.load_model, args), lambda: _sources(args)
    )
    networks = cli.make_predictors([cli.load_network(path, args) for path in paths], args)
    cli.accept_any_name()
    found = []
    for said in prediction.predict(networks, sources, args.k, args.batch, ten_crop=args.ten_crop):
        found.append(said)
        if said.error is not None:
            problem = printable(f'{said.source}: {said.error}')
            print(f'{p.prog}: error: {problem}', file=sys.stderr)
        elif not args.json:
            print(report.text(said), flush=True)
    if args.json:
        print(json.dumps([report.as_json(said) for said in found], indent=1))
    readable = [said for said in found if said.error is None]
    if readable and networks[0].engine != 'reference':  # plain Chainer is the default
        print(f'computed by {networks[0].description}', file=sys.stderr)
    if args.draw and readable:
        from trainer.reports import drawing

        drawing.draw(readable, args.draw)
    if args.cam and readable:
        from trainer.inference import cam
        from trainer.reports import drawing

        network = networks[0].network
        drawing.draw_maps([cam.explain(network, said) for said in readable], args.cam)
    return 0 if len(readable) == len(found) else 2


def command() -> None:
    """Run the script; an error that the user can fix ends in one line (:func:`cli.run`)."""
    cli.run(main)


if __name__ == '__main__':
    command()
