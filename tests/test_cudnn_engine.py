"""The cuDNN engine against the reference: its wiring on any machine, its kernels on a GPU."""

import copy
import re
import shutil
import subprocess
import warnings

import chainer
import numpy as np
import pytest
from conftest import ROOT, has_gpu, images_of_step, relative, simulated
from helpers.networks import NETWORKS, build, cifar, ilsvrc, step

from trainer import cuda, engines
from trainer.engines import cudnn
from trainer.engines.cudnn import grouped, kernels
from trainer.errors import InputError
from trainer.networks import layers
from trainer.optimizers import OPTIMIZERS
from trainer.settings import settings
from trainer.training.extensions import LossScale
from trainer.training.step import Step
from trainer.training.updater import ChunkedUpdater
from trainer.weights import npz


class TestWiring:
    """On NumPy arrays, in float64: the autograd, the residuals, the statistics, the folding."""

    @pytest.mark.parametrize('make', NETWORKS)
    def test_forward_backward_and_statistics(self, make):
        network, x, t = build(make, np.float64)
        reference, found = (step(network, x, t, e) for e in ('reference', 'cudnn'))
        assert relative(reference[0], found[0]) < 1e-12
        for name, gradient in reference[1].items():
            assert relative(gradient, found[1][name]) < 1e-9, name
        for name, array in reference[2].items():
            assert abs(array - found[2][name]).max() < 1e-12, name

    @pytest.mark.parametrize('make', NETWORKS)
    def test_inference(self, make):
        network, x, t = build(make)
        network(x, train=True)
        with chainer.no_backprop_mode():
            golden = network(x, train=False).array
            with chainer.using_config('engine', 'cudnn'):
                folded = {}
                for kept in (None, folded, folded):
                    with settings.using(folded=kept):
                        y = network(x, train=False).array
                    assert relative(golden, y) < 1e-5
                assert folded
                with chainer.using_config('precision', 'mixed'):
                    assert 0 < relative(golden, network(x, train=False).array) < 1e-2

    @pytest.mark.parametrize('engine', ['reference', 'cudnn'])
    def test_a_step_computes_no_gradient_of_the_images(self, engine):
        network, x, t = build(cifar)
        with chainer.using_config('engine', engine):
            images = images_of_step(
                Step(OPTIMIZERS['momentum'](0.1, 0.9).setup(network), network.device, 2), x, t
            )
        assert len(images) == 2 and all(image.grad is None for image in images)
        assert all(param.grad.any() for param in network.params())

    def test_gradients_in_evaluation_mode(self):
        network, x, t = build(cifar)
        found = []
        for engine in ('reference', 'cudnn'):
            variable = chainer.Variable(x)
            with chainer.using_config('engine', engine):
                chainer.functions.sum(network(variable, train=False)).backward()
            found.append(variable.grad)
        assert relative(*found) < 1e-6 and found[0].any()

    def test_feature_maps_are_float16_and_parameters_are_not(self):
        network, x, t = build(cifar)
        with (
            chainer.using_config('engine', 'cudnn'),
            chainer.using_config('precision', 'mixed'),
            chainer.using_config('train', True),
        ):
            kinds = {name: h.dtype for name, h in network.activations(chainer.Variable(x))}
        assert kinds.pop('features') == np.float32 and set(kinds.values()) == {np.dtype(np.float16)}
        for name, gradient in step(network, x, t, 'cudnn', 'mixed')[1].items():
            assert gradient.dtype == np.float32, name

    def test_mixed_layer(self):
        for name, error in layer_errors('mixed', 16, 32, 3, 2, 4, 9, -1).items():
            assert error < cudnn.TOLERANCES['mixed'], name

    def test_memory_is_nhwc_throughout(self):
        network, x, t = build(cifar)
        with chainer.using_config('engine', 'cudnn'), chainer.using_config('train', True):
            for name, h in network.activations(chainer.Variable(x)):
                assert h.array.transpose(0, 2, 3, 1).flags.c_contiguous, name


def layer_errors(
    precision, channels, out, ksize, stride, groups, size, gpu, batch=4, residual=True
):
    """Return the relative error of everything a layer computes, to float64, without a ReLU."""
    rng = np.random.default_rng(1)
    layer = layers.ConvBN(channels, out, ksize, stride, ksize // 2, groups, relu=False)
    layer.conv.W.array[...] = rng.standard_normal(layer.conv.W.shape) / 8
    layer.bn.gamma.array[...] = rng.uniform(0.5, 1.5, out)
    x = rng.standard_normal((batch, channels, size, size + 1)).astype(np.float32)
    results = []
    for engine, device in (
        ('reference', '@numpy'),
        ('cudnn', '@numpy' if gpu < 0 else f'@cupy:{gpu}'),
    ):
        device = chainer.get_device(device)
        device.use()
        link = copy.deepcopy(layer).to_device(device)
        with (
            chainer.using_config('engine', engine),
            chainer.using_config('precision', precision),
            chainer.using_config('train', True),
        ):
            inputs = [chainer.Variable(device.send(x))]
            with chainer.no_backprop_mode():
                shape = copy.deepcopy(link)(inputs[0]).shape
            link.cleargrads()
            rng = np.random.default_rng(2)
            extra = rng.standard_normal(shape).astype(np.float32)
            if residual:
                inputs.append(chainer.Variable(device.send(extra)))
            y = link(*inputs)
            y.grad = device.send(rng.standard_normal(shape).astype(np.float32)).astype(y.dtype)
            y.backward()
        found = {'y': y.array, 'avg_mean': link.bn.avg_mean, 'avg_var': link.bn.avg_var}
        found.update({f'grad of input {i}': v.grad for i, v in enumerate(inputs)})
        found.update({'grad of ' + n: p.grad for n, p in link.namedparams()})
        results.append({k: chainer.get_device('@numpy').send(a) for k, a in found.items()})
    return {k: relative(results[0][k], results[1][k]) for k in results[0]}


def test_scaled_losses_change_nothing_but_rounding(tmp_path):
    """Chainer's adaptive scale, through weight decay and update; kept in snapshots."""
    network, x, t = build(cifar)
    states, scales = [], []
    for scaled in (False, True):
        model = copy.deepcopy(network)
        optimizer = chainer.optimizers.MomentumSGD(0.1).setup(model)
        optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(0.01))
        if scaled:
            optimizer.loss_scaling()
        updater = ChunkedUpdater(
            chainer.iterators.SerialIterator([0], 1), optimizer, chainer.get_device('@numpy'), 2
        )
        for _ in range(3):
            updater.update_with(x, t)
            scales.append(optimizer._loss_scale)
        states.append(npz.state(model))
    assert scales == [None] * 3 + [2.0, 4.0, 8.0]
    for name, array in states[0].items():
        assert relative(np.asarray(array), np.asarray(states[1][name])) < 1e-5, name
    chainer.serializers.save_npz(str(tmp_path / 'scale'), LossScale(optimizer))
    fresh = chainer.optimizers.MomentumSGD().setup(copy.deepcopy(network))
    fresh.loss_scaling()
    chainer.serializers.load_npz(str(tmp_path / 'scale'), LossScale(fresh))
    assert fresh._loss_scale == 8.0


class TestChoice:
    def test_without_cupy(self):
        if has_gpu():
            pytest.skip('there is a GPU here')
        engine, precision, why = engines.choose(0)
        assert (engine, precision) == ('reference', 'float32')
        assert why.startswith('cudnn is not used: ')
        with pytest.raises(InputError, match='precision tf32: cudnn is not used'):
            engines.choose(0, 'tf32')


def sources():
    """Return what is compiled: the files of a module, and macros."""
    found = [
        pytest.param((path,), kernels.DEFINED if path.stem == 'kernels' else {}, id=path.stem)
        for path in sorted(ROOT.glob('trainer/**/*.cu'))
        if path.stem != 'grouped'
    ]
    folder = ROOT / 'trainer' / 'engines' / 'cudnn'
    for depth in (8, 16, 32):
        files = tuple(folder / name for name in grouped.SOURCES)
        found.append(pytest.param(files, {'PRODUCT_DEPTH': depth}, id=f'grouped-{depth}'))
    return found


@pytest.mark.skipif(shutil.which('nvcc') is None, reason="needs NVIDIA's compiler (nvcc)")
@pytest.mark.parametrize('paths, defined', sources())
def test_kernels_compile(paths, defined, tmp_path):
    """For the H100 and H200, without registers that overflow to memory."""
    (tmp_path / 'source.cu').write_text(cuda.source(*paths, **defined))
    run = subprocess.run(
        [
            'nvcc',
            '-arch=sm_90',
            '-std=c++17',
            '-cubin',
            '-Xptxas',
            '-v',
            '-o',
            tmp_path / 'source.cubin',
            tmp_path / 'source.cu',
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    spilled = [int(n) for n in re.findall(r'(\d+) bytes spill', run.stderr)]
    assert spilled and not any(spilled), run.stderr
    for kernel, registers in re.findall(
        r"entry function '(\w+)'.*?Used (\d+) registers", run.stderr, re.DOTALL
    ):
        # A multiprocessor has 65536, given to a warp's threads in eights.
        blocks = kernels.AT_ONCE.get(kernel.rpartition('_')[0], 1)
        assert -(-int(registers) // 8) * 8 * 256 * blocks <= 65536, kernel


@pytest.mark.gpu
class TestOnGPU:
    @pytest.fixture(autouse=True)
    def usable(self):
        why = cudnn.unavailable(0)
        assert why is None, why

    @pytest.mark.parametrize('precision', cudnn.PRECISIONS)
    @pytest.mark.parametrize(
        'channels, out, ksize, stride, groups, size, batch',
        [
            (3, 64, 7, 2, 1, 64, 2),
            (3, 16, 3, 1, 1, 32, 1),
            (64, 10, 1, 1, 1, 1, 4),
            (128, 128, 3, 1, 32, 56, 2),
            (128, 128, 3, 2, 2, 15, 3),
            (64, 64, 3, 2, 8, 7, 1),
            (256, 512, 1, 2, 1, 13, 2),
            (512, 512, 3, 1, 64, 7, 8),
        ],
    )
    def test_layer(self, precision, channels, out, ksize, stride, groups, size, batch):
        for residual in (False, True):
            for name, error in layer_errors(
                precision, channels, out, ksize, stride, groups, size, 0, batch, residual
            ).items():
                assert error < cudnn.TOLERANCES[precision], name

    @pytest.mark.parametrize('precision', cudnn.PRECISIONS)
    @pytest.mark.parametrize('make', NETWORKS)
    def test_network(self, make, precision):
        network, x, t = build(make)
        reference = step(network, x, t, 'reference')
        found = step(network, x, t, 'cudnn', precision, 0)
        assert relative(reference[0], found[0]) < cudnn.TOLERANCES[precision]
        for name, array in reference[2].items():
            assert relative(array, found[2][name]) < cudnn.TOLERANCES[precision], name

    @pytest.mark.parametrize('make', NETWORKS)
    def test_gradients(self, make):
        """In float32; elsewhere many ReLUs flip by rounding."""
        errors = []
        for seed in range(4):
            network, x, t = build(make, seed=seed)
            reference, found = (
                step(network, x, t, engine, 'float32', gpu)[1]
                for engine, gpu in (('reference', -1), ('cudnn', 0))
            )
            errors.append(max(relative(reference[name], found[name]) for name in reference))
            if errors[-1] < 1e-3:
                return
        # One that flips moves a gradient by 1e-2, but flips for one input in a few.
        pytest.fail(f'relative errors of gradients, by input: {errors}')

    @pytest.mark.parametrize('precision', cudnn.PRECISIONS)
    def test_loss_curves_overlap(self, precision):
        network, _, _ = build(cifar)
        rng = np.random.default_rng(0)
        batch, updates, window = (4, 5, 1) if simulated() else (64, 200, 20)
        x = rng.standard_normal((batch, 3, 32, 32)).astype(np.float32)
        t = rng.integers(0, 10, batch).astype(np.int32)
        curves = []
        for engine, chosen in (('reference', 'float32'), ('cudnn', precision)):
            model = copy.deepcopy(network)
            model.check_gpu(0)
            optimizer = chainer.optimizers.MomentumSGD(0.05).setup(model)
            losses = []
            with chainer.using_config('engine', engine), chainer.using_config('precision', chosen):
                for _ in range(updates):
                    model.cleargrads()
                    loss = model.calc_loss(
                        model(model.prepare_input(x)), model.prepare_input(t, np.int32)
                    )
                    loss.backward()
                    optimizer.update()
                    losses.append(float(loss.array))
            curves.append(np.array(losses))
        difference = abs(np.convolve(curves[0] - curves[1], np.ones(window) / window, 'valid'))
        assert difference.max() < 0.1 * curves[0].max()
        assert curves[1][-window:].mean() < curves[1][0]

    @pytest.mark.parametrize('precision', cudnn.PRECISIONS)
    def test_predictor(self, precision):
        network, x, _ = build(ilsvrc)
        network(x, train=True)
        golden = network.predictor('reference')
        golden = golden(x), golden.features(x)
        network.check_gpu(0)
        predictor = network.predictor('cudnn', precision)
        for _ in range(2):
            assert relative(golden[0], predictor(x)) < cudnn.TOLERANCES[precision]
            assert relative(golden[1], predictor.features(x)) < cudnn.TOLERANCES[precision]
        assert predictor(x[:1]).shape == (1, 10)

    def test_part_of_a_batch_that_is_not_aligned(self):
        """cuDNN takes no address that 16 does not divide."""
        import cupy

        layer = layers.ConvBN(3, 8, 3, 1, 1).to_device('@cupy:0')
        x = cupy.ones((3, 5, 5, 3), np.float32).transpose(0, 3, 1, 2)[1:]
        assert x.data.ptr % 16
        with warnings.catch_warnings(), chainer.using_config('engine', 'cudnn'):
            warnings.simplefilter('error')
            assert layer(x).shape == (2, 8, 5, 5)

    def test_chosen_by_itself(self):
        assert engines.choose(0, training=True) == ('cudnn', 'mixed', None)
        assert engines.choose(0) == ('cudnn', 'float32', None)
