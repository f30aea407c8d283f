"""The fused update equals the optimizer and its hooks bit for bit."""

import chainer
import numpy as np
import pytest

import resnext
from trainer.engines import update
from trainer.optimizers import OPTIMIZERS, ClipGradient, HeadRate
from trainer.recipes.options import Options
from trainer.training import build, transfer


def of_options(network, **given):
    """Return the weight decay that options ask for."""
    return build._decay(Options(weight_decay=5e-4, **given), network)


@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize(
    'variant', ['plain', 'head', 'frozen', 'other hook', 'clipped', 'not clipped', 'decays']
)
def test_bit_for_bit(name, variant):
    results = []
    for apply in (update.apply, lambda optimizer: optimizer.update()):
        network = resnext.PaperResNext(10, (1, 1, 1), C=2, d=16)
        network.weight_initialization(0)
        optimizer = OPTIMIZERS[name](0.1, 0.9).setup(network)
        if 'clipped' in variant:
            optimizer.add_hook(ClipGradient(1.0 if variant == 'clipped' else 1e6))
        if variant == 'decays':
            optimizer.add_hook(ClipGradient(1.0))
            optimizer.add_hook(of_options(network, norm_weight_decay=0.0, bias_weight_decay=1e-3))
        else:
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


@pytest.mark.parametrize('given', [{}, {'norm_weight_decay': 0.0}, {'bias_weight_decay': 0.5}])
def test_what_decays(given):
    """By SGD of rate 1 without momentum and gradients, each loses its decay times itself."""
    network = resnext.PaperResNext(10, (1, 1, 1), C=2, d=4)
    network.weight_initialization(0)
    for link in network.links():
        if isinstance(link, chainer.links.BatchNormalization):
            link.beta.array[...] = 2
    network.fc.b.array[...] = 3
    before = {name: p.array.copy() for name, p in network.namedparams()}
    options = Options(lr=1.0, momentum=0.0, weight_decay=0.25, **given)
    optimizer = build.optimizer(options, network)
    for param in network.params():
        param.grad = np.zeros_like(param.array)
    update.apply(optimizer)
    for name, param in network.namedparams():
        kind = 'norm' if '/bn/' in name else 'bias' if name == '/fc/b' else 'other'
        decay = given.get(f'{kind}_weight_decay', 0.25)
        assert np.array_equal(param.array, (1 - decay) * before[name]), name


@pytest.mark.parametrize('threshold', [0.5, 1e3])
def test_gradients_are_clipped_as_torch_clips_them(threshold):
    network = resnext.PaperResNext(10, (1, 1, 1), C=2, d=4)
    network.weight_initialization(0)
    optimizer = build.optimizer(
        Options(
            lr=1.0, momentum=0.0, weight_decay=0.0, clip_grad=threshold, freeze=('stem', 'stage1')
        ),
        network,
    )
    rng = np.random.default_rng(0)
    trained = {id(p) for p in network.params() if p.update_rule.enabled}
    before, gradients = {}, {}
    for name, param in sorted(network.namedparams()):
        param.grad = rng.standard_normal(param.shape).astype(np.float32)
        before[name] = param.array.copy()
        if id(param) in trained:
            gradients[name] = param.grad.astype(np.float64)
    norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    factor = min(1, threshold / (norm + 1e-6))
    assert 0 < len(gradients) < len(before) and (factor < 1) == (threshold < 1)
    update.apply(optimizer)
    for name, param in network.namedparams():
        wanted = before[name] - factor * gradients.get(name, 0)
        np.testing.assert_allclose(param.array, wanted, rtol=1e-5, atol=1e-6)
