"""Functions of Chainer 7.8.1 that ask for what NumPy 2 and Python have changed.

Each is wrapped, or finds under a name of its module what was there in its day; none is
copied.
"""

import functools
import threading
import types

import chainer
import numpy
from chainer.dataset import convert
from chainer.distributions import Categorical
from chainer.functions.array import pad_sequence, resize_images
from chainer.iterators import multiprocess_iterator

from trainer.chainer_compat.items import Items

ITEMS = Items()


def numpy_2():
    """Return whether this is NumPy 2 or later."""
    return numpy.lib.NumpyVersion(numpy.__version__) >= '2.0.0b1'


def with_names(function, **names):
    """Return the function, which finds ``names`` in place of those of its module."""
    return functools.update_wrapper(
        types.FunctionType(
            function.__code__,
            {**function.__globals__, **names},
            argdefs=function.__defaults__,
            closure=function.__closure__,
        ),
        function,
    )


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
    missing=numpy_2,
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
    missing=numpy_2,
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
    missing=numpy_2,
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
        def setDaemon(self, daemon):
            self.daemon = daemon

    multiprocess_iterator.threading = types.SimpleNamespace(**vars(threading) | {'Thread': Thread})
