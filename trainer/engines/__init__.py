"""Engines compute the layers; the networks are defined once, in :mod:`trainer.networks`.

An engine is a module here with the functions of :mod:`trainer.engines.reference`,
which says what each must compute. Every other engine is tested against it.
"""
import importlib

import chainer

chainer.global_config.engine = 'reference'


def current():
    """Return the engine module that ``chainer.config.engine`` names.

    Choose another for a while with ``chainer.using_config('engine', name)``.
    """
    return importlib.import_module('trainer.engines.' + chainer.config.engine)
