"""Functions of Chainer 7.8.1 that rely on what NumPy 2 and Python have changed.

Each is wrapped, or finds what it needs under a name of its module; none is copied.
"""

import functools
import threading
import types
from collections.abc import Callable

import chainer
import numpy
from chainer.dataset import convert
from chainer.distributions import Categorical
from chainer.functions.array import pad_sequence, resize_images
from chainer.functions.math import fix
from chainer.iterators import multiprocess_iterator
from chainer.links import Maxout
from packaging.version import Version

from trainer.chainer_compat.items import Items

ITEMS = Items()


def numpy_since(version: str) -> Callable[[], bool]:
    """Return a function that tells whether this is NumPy ``version`` or later."""
    return lambda: Version(numpy.__version__) >= Version(version)


def with_names(function: types.FunctionType, **names: object) -> types.FunctionType:
    """Return a copy of a function that finds ``names`` in place of those of its module."""
    renamed = types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        argdefs=function.__defaults__,
        closure=function.__closure__,
    )
    functools.update_wrapper(renamed, function)
    return renamed


@ITEMS.add(
    'chainer.functions.resize_images',
    'numpy.float, which it asks for, is gone since NumPy 1.24',
    missing=lambda: not hasattr(numpy, 'float'),
)
def _resize_images():
    resize_images.compute_indices_and_weights = with_names(
        resize_images.compute_indices_and_weights, numpy=types.SimpleNamespace(float=float)
    )


@ITEMS.add(
    'chainer.functions.pad_sequence',
    'a negative number does not wrap around in an unsigned array since NumPy 2.0',
    missing=numpy_since('2.0'),
)
def _pad_sequence():
    forward = pad_sequence.PadSequence.forward

    def wrapping(self, xs):
        self.padding = numpy.asarray(self.padding).astype(xs[0].dtype)[()]
        return forward(self, xs)

    pad_sequence.PadSequence.forward = wrapping


@ITEMS.add(
    'chainer.distributions.Categorical.log_prob',
    'numpy.meshgrid returns a tuple, to which it adds a list, since NumPy 2.0',
    missing=numpy_since('2.0'),
)
def _categorical():
    Categorical.log_prob = with_names(
        Categorical.log_prob,
        numpy=types.SimpleNamespace(
            int32=numpy.int32,
            meshgrid=lambda *axes, **options: list(numpy.meshgrid(*axes, **options)),
        ),
    )


@ITEMS.add(
    'chainer.dataset.concat_examples',
    'with padding, it gives numpy.maximum the output as third argument: deprecated since NumPy 2.4',
    missing=numpy_since('2.4'),
)
def _concat_examples():
    convert._concat_arrays_with_padding = with_names(
        convert._concat_arrays_with_padding,
        numpy=types.SimpleNamespace(
            any=numpy.any,
            array=numpy.array,
            insert=numpy.insert,
            maximum=lambda a, b, out: numpy.maximum(a, b, out=out),
        ),
    )


@ITEMS.add(
    'chainer.functions.fix', 'numpy.fix is deprecated since NumPy 2.5', missing=numpy_since('2.5')
)
def _fix():
    @functools.wraps(fix.fix)
    def truncate(x):
        array = x.array if isinstance(x, chainer.Variable) else x
        xp = chainer.backend.get_array_module(array)
        return chainer.as_variable(chainer.utils.force_array(xp.trunc(array), array.dtype))

    chainer.functions.fix = fix.fix = truncate


class _Shaped(chainer.Initializer):
    """Initializer that a function sees with another shape."""

    def __init__(self, fill, shape):
        super().__init__()
        self.fill = fill
        self.shape = shape

    def __call__(self, array):
        self.fill(array.reshape(self.shape))


@ITEMS.add(
    'chainer.links.Maxout',
    'with functions as initializers, it sets the shape of arrays: deprecated since NumPy 2.5',
    missing=numpy_since('2.5'),
)
def _maxout():
    init = Maxout.__init__

    def with_shapes(self, in_size, out_size, pool_size, initialW=None, initial_bias=0):
        def shaped(initial, shape):
            function = callable(initial) and not isinstance(initial, chainer.Initializer)
            return _Shaped(initial, shape) if function else initial

        initialW = shaped(initialW, (out_size, pool_size, in_size))
        init(
            self,
            in_size,
            out_size,
            pool_size,
            initialW,
            shaped(initial_bias, (out_size, pool_size)),
        )

    Maxout.__init__ = with_shapes


@ITEMS.add(
    'chainer.Variable.debug_print',
    "arrays have a device, which it prints as 'cpu' instead of 'CPU', since NumPy 2.0",
    missing=lambda: hasattr(numpy.ndarray, 'device'),
)
def _debug_print():
    debug_print = chainer.Variable.debug_print

    def with_device(self):
        return debug_print(self).replace('\n- device: cpu\n', '\n- device: CPU\n')

    chainer.Variable.debug_print = with_device


@ITEMS.add(
    'chainer.iterators.MultiprocessIterator',
    'Thread.setDaemon, which it calls, is deprecated since Python 3.10',
    missing=lambda: True,
)
def _multiprocess_iterator():
    class Thread(threading.Thread):
        def setDaemon(self, daemon: bool) -> None:
            self.daemon = daemon

    multiprocess_iterator.threading = types.SimpleNamespace(**vars(threading) | {'Thread': Thread})
