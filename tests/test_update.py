"""The update of all parameters at once: bit for bit as the optimizer and its hooks do."""

import chainer
import numpy as np
import pytest

import resnext
from trainer.engines import update
from trainer.optimizers import OPTIMIZERS, HeadRate
from trainer.training import transfer


@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('variant', ['plain', 'head', 'frozen', 'other hook'])
def test_bit_for_bit(name, variant):
    results = []
    for apply in (update.apply, lambda optimizer: optimizer.update()):
        network = resnext.PaperResNext(10, (1, 1, 1), C=2, d=16)
        network.weight_initialization(0)
        optimizer = OPTIMIZERS[name](0.1, 0.9).setup(network)
        optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(5e-4))
        if variant == 'head':
            optimizer.add_hook(HeadRate(list(network.fc.params()), 10.0))
        elif variant == 'frozen':
            transfer.Frozen(network, ['stem'])
        elif variant == 'other hook':
            optimizer.add_hook(chainer.optimizer_hooks.GradientClipping(1.0))
        rng = np.random.default_rng(0)
        for step in range(3):
            for p in sorted(network.namedparams()):
                p[1].grad = rng.standard_normal(p[1].shape).astype(np.float32)
            network.fc.b.grad = None  # nothing depends on it
            optimizer.lr = 0.1 / (step + 1)
            apply(optimizer)
        saved = chainer.serializers.DictionarySerializer()
        saved.save(optimizer)
        saved['network'].save(network)
        results.append(saved.target)
    assert results[0].keys() == results[1].keys()
    for key, array in results[0].items():
        assert np.array_equal(array, results[1][key]), key
