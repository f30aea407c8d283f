"""Arguments that the scripts share, and errors of one line.

Neither this module nor a script imports Chainer or NumPy before the flags are checked: they take
seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from trainer import values
from trainer.arguments import ArgumentParser
from trainer.errors import InputError, together
from trainer.inference import predictors
from trainer.text import Printable, printable

if TYPE_CHECKING:
    from trainer.inference.model import Model
    from trainer.inference.predictors import Predictor

__all__ = ['ArgumentParser']


def prog() -> str:
    """Return the name of the script, for messages."""
    return os.path.basename(sys.argv[0])


def accept_any_name() -> None:
    """Make stdout accept file and class names that are not valid text."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')


def reason(error: BaseException) -> str | None:
    """Describe an error that the user can fix in one line; ``None`` for other errors."""
    if isinstance(error, InputError):
        message = '; '.join(error.for_script())
    elif isinstance(error, OSError) and error.errno is not None:
        message = '{}{}'.format(f'{error.filename}: ' if error.filename else '', error.strerror)
    elif isinstance(error, MemoryError):
        message = 'not enough memory{}; a smaller batch (-b) needs less'.format(
            f' ({error})' if str(error) else ''
        )
    else:
        return None
    return printable(message)


class _ListWeights(argparse.Action):
    """Print the published weights and exit, as --help does."""

    def __init__(self, option_strings, dest, **kwargs):
        kwargs |= {'dest': argparse.SUPPRESS, 'default': argparse.SUPPRESS, 'nargs': 0}
        super().__init__(option_strings, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        from trainer.reports import weights

        print(weights.table())
        parser.exit()


def add_list_weights_flag(p: ArgumentParser) -> None:
    """Add --list-weights."""
    p.add_argument(
        '--list-weights',
        action=_ListWeights,
        help='list the published weights that -m takes by name',
    )


def add_model_flag(p: ArgumentParser) -> None:
    """Add -m: one model, or several, whose posterior probabilities are averaged."""
    p.add_argument(
        '--load-model',
        '-m',
        metavar='FILE',
        action='append',
        required=True,
        help="the model: npz, Torch7, PyTorch or safetensors, of any name, a run's "
        'folder (its best model), or the name of published weights; repeated: the posteriors '
        'of all are averaged',
    )
    add_list_weights_flag(p)


def add_inference_flags(p: ArgumentParser, batch: int) -> None:
    """Add --batch (default: ``batch``), --gpu, --engine, --precision and --calibration."""
    p.add_argument(
        '--batch',
        '-b',
        type=values.positive(int),
        default=batch,
        metavar='N',
        help='images per batch (default: %(default)s)',
    )
    p.add_argument(
        '--gpu',
        '-g',
        type=int,
        default=-1,
        metavar='N',
        help='GPU number, -1 for the CPU (default: %(default)s)',
    )
    p.add_argument(
        '--engine',
        choices=predictors.available(),
        help='what computes (default: on a CPU the faster of openvino and '
        'onnxruntime, cudnn on a GPU, where they are installed, otherwise reference, which is '
        'plain Chainer)',
    )
    p.add_argument(
        '--precision',
        choices=['float32', 'bfloat16', 'int8', 'tf32', 'mixed'],
        default='float32',
        help='precision of the computation: bfloat16 for openvino and onednn on CPUs that '
        'have it; int8 for openvino; tf32 and mixed (float16) for cudnn (default: float32)',
    )
    p.rare += ('calibration',)
    p.add_argument(
        '--calibration',
        metavar='DIR',
        help='images that int8 takes the ranges of numbers from: some hundred of the kind that is '
        'to be recognised, in the folder or below it',
    )


def check_precision(args: argparse.Namespace) -> None:
    """Check that what --precision needs is installed, before any weights are loaded.

    Raises:
        trainer.errors.InputError: Something is missing.
    """
    predictors.check_precision(args.precision, args.calibration, args.engine)
    if args.calibration is not None:
        from trainer.inference import quantization

        quantization.check(args.calibration)


def add_geometry_flags(p: ArgumentParser) -> None:
    """Add --img-size, --crop-pct, --interpolation, --mean and --std, by timm's names."""
    group = p.add_argument_group('test geometry, instead of the one stored in the model')
    given: dict[str, Any] = {'default': argparse.SUPPRESS}
    p.rare += ('img_size', 'crop_pct', 'interpolation', 'mean', 'std')
    group.add_argument(
        '--img-size',
        type=values.positive(int),
        metavar='N',
        help='height and width of the network input, in pixels',
        **given,
    )
    group.add_argument(
        '--crop-pct',
        type=float,
        metavar='SHARE',
        help='crop size as a share of the resized short side: 0.875 is 224 of 256',
        **given,
    )
    group.add_argument(
        '--interpolation', choices=values.INTERPOLATIONS, help='how images are resized', **given
    )
    for name, what in (('mean', 'mean'), ('std', 'standard deviation')):
        group.add_argument(
            f'--{name}',
            type=float,
            nargs=3,
            metavar=('R', 'G', 'B'),
            help=f'{what} of the channels, in 0..1',
            **given,
        )


def set_geometry(network: Model, args: argparse.Namespace) -> None:
    """Set the test geometry of a network to the flags of :func:`add_geometry_flags`, if given.

    Raises:
        trainer.errors.InputError: The geometry cannot be used.
    """
    names = 'img_size', 'crop_pct', 'interpolation', 'mean', 'std'
    changes = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if changes:
        network.set_geometry(**changes)


def add_ten_crop_flag(p: ArgumentParser) -> None:
    """Add --ten-crop."""
    p.add_argument(
        '--ten-crop',
        action='store_true',
        help='average the posteriors of ten crops: corners and centre, also mirrored',
    )


def add_evaluation_flags(p: ArgumentParser) -> None:
    """Add --ten-crop, --workers, --results and --mistakes."""
    add_ten_crop_flag(p)
    p.add_argument(
        '--results',
        metavar='FILE.csv',
        help='write label, answer and their probabilities, one line per image',
    )
    p.add_argument(
        '--mistakes',
        metavar='FILE.png',
        help='draw the wrong answers in which the network is most confident',
    )
    p.add_argument(
        '--workers',
        type=int,
        metavar='N',
        help='processes that load images; 0: the main process does (default: one per core)',
    )


def check_workers(p: ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an error line if --workers is negative."""
    if (args.workers or 0) < 0:
        p.error('--workers takes 0 or more')


def load_network(path: str, args: argparse.Namespace) -> Model:
    """Load a network to the device of :func:`add_inference_flags`; print the notes about it."""
    from trainer.weights import formats

    def say(note):
        print(printable(f'{prog()}: {note}'), file=sys.stderr)

    network = formats.load(path, args.gpu, say)
    set_geometry(network, args)
    return network


def check_models(paths: list[str], args: argparse.Namespace) -> list[str]:
    """Check the GPU and the files of weights before any weights are loaded.

    Args:
        paths: Files of weights, or folders of runs.
        args: Parsed flags of :func:`add_inference_flags`.

    Returns:
        The files; for the folder of a run, its best model.

    Raises:
        trainer.errors.InputError: There is no such GPU, or a file does not hold weights.
    """

    from trainer import devices
    from trainer.weights import formats

    return together(
        lambda: devices.get(args.gpu),
        lambda: check_precision(args),
        *(lambda path=path: formats.locate(path) for path in paths),
    )[2:]


def make_predictors(networks: Sequence[Model], args: argparse.Namespace) -> list[Predictor]:
    """Return the predictors that the flags of :func:`add_inference_flags` ask for."""
    return [
        network.predictor(args.engine, args.precision, args.calibration) for network in networks
    ]


@contextlib.contextmanager
def _interrupts():
    """Yield a list that is no longer empty after Ctrl-C; KeyboardInterrupt is raised as usual."""
    interrupted = []

    def interrupt(number, frame):
        interrupted.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupted
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's ``main()``; report errors that the user can fix in one line each.

    The exit status is 2 after an error of the input or the file system, 130 after an interrupt,
    otherwise what ``main`` returns.
    """
    try:
        with _interrupts() as interrupted, contextlib.redirect_stdout(Printable(sys.stdout)):
            status = main()
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as e:
        # Libraries turn KeyboardInterrupt into other errors; NumPy's import into ImportError.
        if isinstance(e, KeyboardInterrupt) or interrupted:
            print(f'\n{prog()}: interrupted', file=sys.stderr)
            sys.exit(130)
        lines = e.for_script() if isinstance(e, InputError) else [reason(e)]
        if lines == [None]:
            raise
    for line in lines:
        print(f'{prog()}: error: {line}', file=sys.stderr)
    sys.exit(2)
