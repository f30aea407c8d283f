"""The training step as a CUDA graph against Chainer's step."""

import copy
import io

import chainer
import numpy as np
import pytest
from conftest import images_of_step, relative, simulated, state_on_cpu
from helpers.networks import build, squeeze_excite

import resnext
from trainer.engines.cudnn import arena, graphs, kernels, loss_kernels, parameters, provider, timing
from trainer.engines.cudnn.parameters import GpuUpdate, HalfWeights
from trainer.engines.cudnn.provider import nhwc, weights
from trainer.networks import layers
from trainer.optimizers import OPTIMIZERS, ClipGradient, HeadRate, WeightDecays
from trainer.settings import settings
from trainer.training import captured_step, processes, transfer
from trainer.training.captured_step import TOGETHER, CapturedStep
from trainer.training.losses import LabelSmoothing
from trainer.training.step import Step
from trainer.training.updater import ChunkedUpdater
from trainer.transforms import mixing

pytestmark = pytest.mark.gpu

#: Of a run of three epochs of three batches, the last one short.
RATES = (0.004, 0.004, 0.004, 0.002, 0.002, 0.002, 0.001, 0.002, 0.003)


def limit(key, tolerance):
    """Return how far a parameter or statistic may be off after a run.

    A beta is then close to 0, a sum of gradients that cancel: on a GPU, where sums have another
    order, each flipped ReLU is visible there.
    """
    return tolerance if simulated() or not key.endswith('beta') else 10 * tolerance


def network(seed=0):
    built = resnext.PaperResNext(10, (1, 1, 1), C=2, d=4, widen_factor=0.25)
    built.weight_initialization(seed)
    return built


def batches():
    rng = np.random.default_rng(1)
    for i in range(len(RATES)):
        n = 5 if i % 3 == 2 else 8
        yield (
            rng.standard_normal((n, 3, 16, 16)).astype(np.float32),
            rng.integers(0, 10, n).astype(np.int32),
        )


def optimizer(
    model,
    name='momentum',
    scaled=False,
    decay=0.01,
    head=1.0,
    freeze=(),
    lr=0.1,
    clip=None,
    decays=False,
):
    made = OPTIMIZERS[name](lr, 0.9).setup(model)
    if clip:
        made.add_hook(ClipGradient(clip))
    if decays:
        norms = [p for n, p in model.namedparams() if '/bn/' in n]
        others = [p for n, p in model.namedparams() if '/bn/' not in n]
        made.add_hook(WeightDecays([(0.0, norms), (decay, others)]))
    elif decay:
        made.add_hook(chainer.optimizer_hooks.WeightDecay(decay))
    if head != 1:
        made.add_hook(HeadRate(list(model.fc.params()), head))
    if freeze:
        transfer.Frozen(model, freeze)
    if scaled:
        made.loss_scaling()
    return made


def run(model, made, step, precision='float32', engine='cudnn', given=None):
    """Make the updates of :func:`batches`: losses and accuracies."""
    found = []
    with chainer.using_config('engine', engine), chainer.using_config('precision', precision):
        for lr, (x, t, *rows) in zip(RATES, given or batches()):
            made.lr = lr
            loss, accuracy, images = step(x, t, *rows)
            assert images == len(t)
            found.append((float(loss), float(accuracy)))
    step.settle()
    return np.array(found)


def compare(precision='float32', divide=1, given=None, loss=None, **options):
    """Return (found, expected, states, steps) of the captured step and of Chainer's."""
    results = []
    for captured, gpu in ((True, 0), (False, -1)):
        model = network()
        model.check_gpu(gpu)
        made = optimizer(model, **options)
        step = (CapturedStep if captured else Step)(made, model.device, divide, loss)
        found = run(
            model,
            made,
            step,
            precision if captured else 'float32',
            'cudnn' if captured else 'reference',
            given,
        )
        results.append((found, state_on_cpu(model), made, step))
    return results


@pytest.fixture
def divide(request, monkeypatch):
    """Number of chunks, and whether they are computed together."""
    chunks, together = request.param
    monkeypatch.setattr(captured_step, 'TOGETHER', TOGETHER if together else 0)
    return chunks


CHUNKS = pytest.mark.parametrize(
    'divide', [(1, False), (2, True), (2, False)], ids=['1', '2 together', '2'], indirect=True
)


@pytest.mark.parametrize('name', sorted(OPTIMIZERS))
@CHUNKS
def test_float32_follows_chainer(name, divide):
    (found, arrays, made, step), (expected, golden, other, _) = compare(divide=divide, name=name)
    assert relative(expected, found) < 1e-3
    for key, array in golden.items():
        assert relative(array, arrays[key]) < limit(key, 2e-3), key
    assert made.t == other.t == len(RATES)
    assert all(p.update_rule.t == len(RATES) for p in step.network.params())
    # Both shapes of batches were replayed, each as one graph.
    assert [len(c.graphs) for c in step._captured.values()] == [1, 1]


def chunks_of(step):
    """Return (chunks one after another, chunks together) of both shapes of batches."""
    return [(captured.chunks, captured.parts) for captured in step._captured.values()]


def test_chunks_of_different_sizes():
    """Together: of 8 images 3, 3 and 2, of 5 images 2, 2 and 1."""
    (found, arrays, _, step), (expected, golden, *_) = compare(divide=3)
    assert chunks_of(step) == [(1, 3)] * 2
    assert relative(expected, found) < 1e-3
    for key, array in golden.items():
        assert relative(array, arrays[key]) < limit(key, 2e-3), key


def test_chunks_together_that_need_too_much_memory(monkeypatch):
    import cupy

    backward, refused = kernels.bn_backward, []

    def limited(gy, mask, x, gamma, beta, mean, *args):
        if len(mean) > 1:
            refused.append(len(refused))
            if len(refused) == 3:  # after the statistics have changed
                raise cupy.cuda.memory.OutOfMemoryError(1, 2)
        return backward(gy, mask, x, gamma, beta, mean, *args)

    monkeypatch.setattr(provider, '_normalize_backward', limited)
    (found, arrays, made, step), (expected, golden, other, _) = compare(divide=2)
    assert len(refused) == 3
    assert chunks_of(step) == [(2, 1)] * 2
    assert made.t == other.t
    assert relative(expected, found) < 1e-3
    for key, array in golden.items():
        assert relative(array, arrays[key]) < limit(key, 2e-3), key


def test_chunks_of_a_network_with_a_normalisation_of_its_own(monkeypatch):
    """Chainer's takes the statistics of all images that it is given."""

    class Normalised(resnext.PaperResNext):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            with self.init_scope():
                self.norm = chainer.links.BatchNormalization(3)

        def forward(self, x):
            return super().forward(self.norm(x))

    def built():
        model = Normalised(10, (1, 1, 1), C=2, d=4, widen_factor=0.25)
        model.weight_initialization(0)
        return model

    monkeypatch.setitem(globals(), 'network', built)
    (found, _, _, step), (expected, *_) = compare(divide=2)
    assert chunks_of(step) == [(2, 1)] * 2
    assert relative(expected, found) < 1e-3


def test_squeeze_and_excitation():
    """And ResNet-D's shortcuts: as one graph."""
    results = []
    for captured, gpu in ((True, 0), (False, -1)):
        model, x, t = build(squeeze_excite)
        model.check_gpu(gpu)
        step = (CapturedStep if captured else Step)(optimizer(model), model.device)
        engine = 'cudnn' if captured else 'reference'
        results.append(run(model, step.optimizer, step, engine=engine, given=[(x, t)] * 4))
        if captured:
            assert [len(c.graphs) for c in step._captured.values()] == [1]
    assert relative(results[1], results[0]) < 1e-3


def test_no_gradient_of_the_images():
    model = network()
    model.check_gpu(0)
    step = CapturedStep(optimizer(model), model.device)
    x, t = next(batches())
    with chainer.using_config('engine', 'cudnn'):
        for _ in range(2):  # as it comes, and captured
            images = images_of_step(step, x, t)
            assert images and all(image.grad is None for image in images)


def test_head_rate_and_frozen_layers():
    (found, arrays, *_), (expected, golden, *_) = compare(head=3.0, freeze=('stem', 'stage1'))
    before = state_on_cpu(network())
    assert relative(expected, found) < 1e-3
    for key, array in golden.items():
        assert relative(array, arrays[key]) < limit(key, 2e-3), key
        if key.startswith(('stem', 'stage1')):
            assert (arrays[key] == before[key]).all(), key


@pytest.mark.parametrize('name', sorted(OPTIMIZERS))
@pytest.mark.parametrize('clip', [0.3, 1e6])
def test_clipping_and_decays_of_their_own(name, clip):
    (found, arrays, *_), (expected, golden, *_) = compare(
        name=name, clip=clip, decays=True, decay=0.2, head=2.0, freeze=('stem',)
    )
    assert relative(expected, found) < 1e-3
    for key, array in golden.items():  # shifts began at 0 and are hardly there as yet
        assert relative(array, arrays[key]) < 5e-3, key
    # They are not without effect.
    (_, other, *_), _ = compare(name=name, clip=1e6, decay=0.2, head=2.0, freeze=('stem',))
    assert max(relative(golden[key], other[key]) for key in golden if '/bn/gamma' in key) > 1e-2


def mixed_batches(divide):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 10, 100).astype(np.int32)
    drawn = mixing.Mixing(0.2, 1.0, 0.4, 3, (16, 16), labels, divide)
    for i in range(len(RATES)):
        n = 5 if i % 3 == 2 else 8
        images = rng.standard_normal((n, 3, 16, 16)).astype(np.float32)
        numbers = rng.permutation(100)[:n].tolist()
        yield images, labels[numbers], drawn([(1, number) for number in numbers], i)


@pytest.mark.parametrize('precision', ['float32', 'mixed'])
@CHUNKS
def test_mixed_images(precision, divide):
    scaled = precision == 'mixed'
    (found, arrays, _, step), (expected, golden, *_) = compare(
        precision,
        divide,
        list(mixed_batches(divide)),
        LabelSmoothing(0.1),
        scaled=scaled,
        decays=True,
        clip=1.0,
    )
    assert [len(c.graphs) for c in step._captured.values()] == [1, 1]
    assert relative(expected[:, 0], found[:, 0]) < (5e-2 if scaled else 1e-3)
    if not scaled:
        assert relative(expected[:, 1], found[:, 1]) < 1e-3
        for key, array in golden.items():
            assert relative(array, arrays[key]) < 2e-3, key
    # Without mixing it is another loss.
    (plain, *_), _ = compare(precision, divide, loss=LabelSmoothing(0.1), scaled=scaled)
    assert relative(expected[:, 0], plain[:, 0]) > 2e-2


def test_mixed_follows_roughly_and_scales():
    (found, arrays, made, _), (expected, golden, other, _) = compare('mixed', scaled=True)
    assert relative(expected[:, 0], found[:, 0]) < 5e-2
    assert made._loss_scale == other._loss_scale == 2.0 ** len(RATES)
    assert all(a.dtype == np.float32 for a in arrays.values() if a.ndim)


@pytest.fixture
def half_gradients(monkeypatch, no_plans):
    """Remove plans of weight gradients from float16 to float32, which the stem and narrow groups
    lack on a GPU; return the dtypes of the gradients in updates."""
    build, types = graphs.conv_backward_weights, []

    def without_float32(*key):
        if key[5:7] == ('f', 'e'):
            raise graphs.NoPlan('from float16 to float32')
        return build(*key)

    class Seen(GpuUpdate):
        def fill(self, table):
            super().fill(table)
            types.append({p.grad.dtype.char for p in self.params if p.ndim == 4})

    monkeypatch.setattr(graphs, 'conv_backward_weights', without_float32)
    monkeypatch.setattr(parameters, 'GpuUpdate', Seen)
    return types


@CHUNKS
def test_update_reads_half_gradients(half_gradients, divide):
    together = captured_step.TOGETHER
    (found, arrays, made, _), (expected, *_) = compare('mixed', divide, scaled=True)
    # Of one chunk, or of chunks together, they are what cuDNN made; else sums.
    assert half_gradients == [{'e' if divide == 1 or together else 'f'}] * 4
    assert relative(expected[:, 0], found[:, 0]) < 5e-2
    assert made._loss_scale == 2.0 ** len(RATES)
    assert all(a.dtype == np.float32 for a in arrays.values() if a.ndim)


def test_processes_exchange_float32(half_gradients):
    class Exchange(Twice):
        def mean_gradients(self, network):
            assert {p.grad.dtype.char for p in network.params()} == {'f'}
            super().mean_gradients(network)

    model = network()
    model.check_gpu(0)
    group = Exchange()
    step = CapturedStep(optimizer(model), model.device, 1, None, None, group)
    x, t = next(batches())
    with chainer.using_config('engine', 'cudnn'), chainer.using_config('precision', 'mixed'):
        for _ in range(3):
            step(x, t)
    assert group.exchanged == 3


def test_half_gradients_of_a_layer_that_is_used_twice(half_gradients):
    layer = layers.ConvBN(8, 8, 3, 1, 1, relu=False)
    layer.to_device('@cupy:0')
    x = chainer.Variable(layer.device.send(next(batches())[0].reshape(8, 8, 12, 8)))
    found = []
    with chainer.using_config('engine', 'cudnn'), chainer.using_config('precision', 'mixed'):
        for converted in (None, HalfWeights(layer)):
            if converted is not None:
                converted()
            layer.cleargrads()
            with (
                settings.using(half_weights=converted and converted.of),
                chainer.using_config('train', True),
            ):
                y = layer(layer(x))
                y.grad = x.array.astype(y.dtype)
                y.backward()
            found.append(layer.conv.W.grad)
    assert [g.dtype for g in found] == [np.float32] * 2
    assert relative(*(g.get() for g in found)) < 1e-3


@pytest.mark.parametrize('name', sorted(OPTIMIZERS))
@pytest.mark.parametrize('overflow', [False, True])
def test_update_by_half_gradients_is_that_by_their_values(name, overflow):
    """In NHWC memory, of several parts, the last of which overflows."""
    import cupy

    results = []
    for dtype in (np.float16, np.float32):
        model = chainer.Sequential(chainer.links.Convolution2D(70, 48, 3, initialW=1))
        model.to_device('@cupy:0')
        made = optimizer(model, name, scaled=True)
        update, rng = GpuUpdate(made), np.random.default_rng(0)
        for param in update.params:
            grad = rng.standard_normal(param.shape).astype(np.float16)
            grad.ravel()[-1] = np.inf if overflow else 1
            there = cupy.asarray(grad).astype(dtype)
            param._set_grad_without_check(nhwc(there, dtype) if there.ndim == 4 else there)
        table = update.table()
        update.prepare()
        update.fill(table)
        update(table)
        update.settle()
        assert made._loss_scale == (1 if overflow else 2)
        results.append([p.array.get() for p in update.params])
    for half, single, before in zip(*results, (1, 0)):
        assert (half == single).all()
        assert (half == before).all() == overflow


def test_weights_are_converted_at_once():
    # Of more than one part, with groups, and of sizes that fill no part.
    model = resnext.PaperResNext(10, (1, 1, 1), C=2, d=48, widen_factor=0.25)
    model.weight_initialization(0)
    model.check_gpu(0)
    half = HalfWeights(model)
    for _ in range(2):
        half()
        assert len(half.of) == 1 + 3 * 3 + 3
        for array, converted in half.of.values():
            assert converted.transpose(0, 2, 3, 1).flags.c_contiguous
            assert (converted == array.astype(np.float16)).all()
        for param in model.params():
            param.array *= -2


def test_replaced_weights_are_not_taken_for_their_copy():
    layer = layers.ConvBN(8, 8, 3)
    layer.to_device('@cupy:0')
    half = HalfWeights(layer)
    half()
    with settings.using(half_weights=half.of):
        for expected in (0, 1):
            found = weights(layer.conv.W.array, np.dtype(np.float16), layer.conv)
            assert found.dtype == np.float16 and (found == expected).all()
            assert (found is half.of[layer.conv][1]) == (expected == 0)
            layer.conv.W.array = layer.conv.W.array + 1


def test_overflow_changes_nothing_but_the_scale():
    model = network()
    model.check_gpu(0)
    made = optimizer(model, scaled=True)
    step = CapturedStep(made, model.device)
    given = list(batches())[:1] * 4
    with chainer.using_config('engine', 'cudnn'), chainer.using_config('precision', 'float32'):
        for x, t in given[:2]:
            step(x, t)
        step.settle()
        assert (made._loss_scale, made._loss_scaling_isnan_ever) == (4.0, False)
        params = {n: p.array.get() for n, p in model.namedparams()}
        step(np.full_like(given[2][0], np.inf), given[2][1])
        step.settle()
        assert (made._loss_scale, made._loss_scaling_isnan_ever) == (2.0, True)
        for name, param in model.namedparams():
            assert (params[name] == param.array.get()).all(), name
        for link in model.links():  # what inf made of the statistics is not what is tested
            if isinstance(link, chainer.links.BatchNormalization):
                link.avg_mean[...] = 0
                link.avg_var[...] = 1
        step(*given[3])
        step.settle()
        assert made._loss_scale == pytest.approx(2 * 2**0.001)
        assert any((params[n] != p.array.get()).any() for n, p in model.namedparams())
    assert made.t == 4


def test_going_on_is_as_if_never_stopped():
    """A snapshot between updates, taken up by another process's step."""

    def begin():
        model = network()
        model.check_gpu(0)
        made = optimizer(model, scaled=True)
        updater = ChunkedUpdater(
            chainer.iterators.SerialIterator([0], 1), made, model.device, captured=True
        )
        return model, made, updater

    def save(target):
        file = io.BytesIO()
        chainer.serializers.save_npz(file, target)
        file.seek(0)
        return file

    given = list(batches())
    model, made, updater = begin()
    run(model, made, updater.step, 'mixed', given=given)
    golden = state_on_cpu(model)

    model, made, updater = begin()
    run(model, made, updater.step, 'mixed', given=given[:6])
    snapshot, scale = save(updater), made._loss_scale
    model, made, updater = begin()
    run(model, made, updater.step, 'mixed', given=given[:2])  # a state to be replaced
    chainer.serializers.load_npz(snapshot, updater)
    made._loss_scale = scale
    with chainer.using_config('engine', 'cudnn'), chainer.using_config('precision', 'mixed'):
        for lr, (x, t) in zip(RATES[6:], given[6:]):
            made.lr = lr
            updater.step(x, t)
    updater.step.settle()
    assert made._loss_scale == 2.0 ** len(RATES)
    # Some of cuDNN's plans add up in any order; simulated, nothing but the state can differ.
    for key, array in state_on_cpu(model).items():
        assert relative(golden[key], array) <= (0 if simulated() else limit(key, 2e-2)), key


class Twice(processes.Alone):
    """Two processes that compute the same: gradients and sums are exchanged without a change."""

    size = 2
    exchanged = 0

    def sum(self, *values):
        return [2.0 * float(value) for value in values]

    def mean_gradients(self, network):
        for param in network.params():
            param.grad *= 0.5
            param.grad *= 2
        self.exchanged += 1


@CHUNKS
def test_processes_exchange_gradients_between_two_graphs(divide):
    found, states = [], []
    for group in (processes.Alone(), Twice()):
        model = network()
        model.check_gpu(0)
        step = CapturedStep(optimizer(model), model.device, divide, None, None, group)
        losses = []
        with chainer.using_config('engine', 'cudnn'):
            for x, t in batches():
                loss, accuracy, images = step(x, t)
                assert images == group.size * len(t)
                losses.append((float(loss), float(accuracy)))
        found.append(losses)
        states.append(state_on_cpu(model))
        assert [len(c.graphs) for c in step._captured.values()] == [group.size] * 2
    assert group.exchanged == len(RATES)
    assert relative(*found) < 1e-3
    for key, array in states[0].items():
        assert relative(array, states[1][key]) < 2e-3, key


def test_other_arrays_are_noticed():
    model = network()
    model.check_gpu(0)
    made = optimizer(model)
    step = CapturedStep(made, model.device)
    given = list(batches())
    run(model, made, step, given=given[:1] * 3)
    model.fc.W.array = model.fc.W.array.copy()
    model.stem.bn.avg_mean = model.stem.bn.avg_mean.copy()
    before = model.fc.W.array.get(), model.stem.bn.avg_mean.get()
    run(model, made, step, given=given[:1])
    assert (model.fc.W.array.get() != before[0]).any()
    assert (model.stem.bn.avg_mean.get() != before[1]).any()


def test_what_cannot_be_captured_is_computed_as_it_comes():
    results = []
    for captured in (True, False):
        model = network()
        model.check_gpu(0)
        made = chainer.optimizers.Adam().setup(model)
        step = (CapturedStep if captured else Step)(made, model.device)
        with chainer.using_config('engine', 'cudnn'):
            if captured:
                with pytest.warns(UserWarning, match='not captured as a CUDA graph: Adam'):
                    losses = [float(step(x, t)[0]) for x, t in batches()]
            else:
                losses = [float(step(x, t)[0]) for x, t in batches()]
        results.append(losses)
    assert relative(*results) < 1e-3


def test_a_loss_that_waits_for_the_device():
    def waiting(y, t):
        loss = chainer.functions.softmax_cross_entropy(y, t)
        seen.append(float(loss.array))
        return loss

    seen = []
    model = network()
    model.check_gpu(0)
    step = CapturedStep(optimizer(model), model.device, 1, waiting)
    with (
        chainer.using_config('engine', 'cudnn'),
        pytest.warns(UserWarning, match='not captured as a CUDA graph'),
    ):
        found = [float(step(x, t)[0]) for x, t in batches()]
    assert found == pytest.approx(seen[-len(found) :], rel=1e-5)


def test_a_layer_that_needs_cublas():
    class WithLinear(resnext.PaperResNext):
        def classify(self, h):
            return self.fc(h)

    model = WithLinear(10, (1, 1, 1), C=2, d=4, widen_factor=0.25)
    model.weight_initialization(0)
    model.check_gpu(0)
    made = optimizer(model, lr=0.002)
    step = CapturedStep(made, model.device)
    with (
        chainer.using_config('engine', 'cudnn'),
        pytest.warns(UserWarning, match='not captured as a CUDA graph'),
    ):
        found = [float(step(x, t)[0]) for x, t in batches()]
    assert made.t == len(RATES)  # some were made by the kernel, some by Chainer
    model = copy.deepcopy(network())
    model.check_gpu(0)
    made = optimizer(model, lr=0.002)
    step = CapturedStep(made, model.device)
    with chainer.using_config('engine', 'cudnn'):
        expected = [float(step(x, t)[0]) for x, t in batches()]
    assert relative(expected, found) < 1e-3


def test_plans_are_timed_for_whole_batches_alone(monkeypatch, no_plans):
    timed = []

    def times(graphs, stream):
        timed.append(len(step._captured))
        return dict.fromkeys(graphs, 0.0)

    monkeypatch.setattr(timing, '_times', times)
    model = network()
    model.check_gpu(0)
    step = CapturedStep(optimizer(model), model.device)
    with chainer.using_config('engine', 'cudnn'), chainer.using_config('precision', 'mixed'):
        for x, t in batches():
            step(x, t)
    assert len(timed) > 20 and set(timed) == {1}
    assert [len(c.graphs) for c in step._captured.values()] == [1, 1]


def test_a_steps_memory_is_what_is_in_use_at_once(monkeypatch):
    """A pool that grew by what is asked for would be a tenth larger, and with the blocks of the
    first, eager step a third."""
    monkeypatch.setattr(arena, 'LARGE', 1 << 12)
    model = network()
    model.check_gpu(0)
    step = CapturedStep(optimizer(model), model.device)
    x, t = next(batches())
    given = [(np.repeat(x, 4, axis=0), np.repeat(t, 4))] * 3
    recordings, record = [], arena.Recording

    def noted(malloc):
        recordings.append(record(malloc))
        return recordings[-1]

    monkeypatch.setattr(arena, 'Recording', noted)
    found = run(model, step.optimizer, step, given=given)
    (recording,) = recordings
    sizes, ends = recording.sizes, recording.freed
    peak = max(
        sum(size for j, size in enumerate(sizes) if j <= i and (ends[j] is None or ends[j] > i))
        for i in range(len(sizes))
    )
    assert len(sizes) > 50
    assert peak <= step._room.pool.total_bytes() <= 1.1 * peak + sum(s < 1 << 12 for s in sizes)
    # The step computes the same with memory from the pool alone.
    monkeypatch.setattr(arena, 'LARGE', 1 << 40)
    other = network()
    other.check_gpu(0)
    step = CapturedStep(optimizer(other), other.device)
    np.testing.assert_allclose(run(other, step.optimizer, step, given=given), found, rtol=1e-6)


@pytest.mark.parametrize('images, classes', [(3, 10), (41, 1000), (8, 33)])
def test_tally(images, classes):
    import cupy

    rng = np.random.default_rng(3)
    # Few different scores: several are the largest, of which the first counts.
    scores = rng.integers(0, 5, (images, classes)).astype(np.float32) - 7
    labels = scores.argmax(axis=1).astype(np.int32)
    labels[::2] = rng.integers(0, classes, len(labels[::2]))
    totals = cupy.asarray(np.array([1.5, 2], np.float64))
    loss = cupy.asarray(np.array(0.25, np.float32))
    loss_kernels.tally(cupy.asarray(scores), cupy.asarray(labels), loss, totals)
    correct = (scores.argmax(axis=1) == labels).sum()
    assert totals.get().tolist() == [1.5 + 0.25 * images, 2 + correct]


@pytest.mark.parametrize('images, classes', [(3, 10), (41, 1000), (8, 33), (1, 1)])
@pytest.mark.parametrize('dtype', [np.float32, np.float16])
def test_cross_entropy(images, classes, dtype):
    import cupy

    rng = np.random.default_rng(3)
    scores = (8 * rng.standard_normal((images, classes))).astype(dtype)
    scores[0] += 100  # too large for exp
    labels = rng.integers(0, classes, images).astype(np.int32)
    totals = cupy.asarray(np.array([1.5, 2], np.float64))
    there = cupy.asarray(scores), cupy.asarray(labels)
    scale = cupy.asarray(np.array(1024.0))
    gradient = loss_kernels.cross_entropy(*there, scale, 0.5, totals)
    x = chainer.Variable(scores.astype(np.float64))
    expected = chainer.functions.softmax_cross_entropy(x, labels)
    (0.5 * expected).backward()
    assert gradient.dtype == dtype
    wanted = 1024 * x.grad
    error = abs(gradient.get() - wanted).max() / max(abs(wanted).max(), 1e-30)
    assert error < (1e-5 if dtype == np.float32 else 1e-3) or not wanted.any()
    found = totals.get() - [1.5, 2]
    assert found[0] == pytest.approx(float(expected.array) * images, rel=1e-5, abs=1e-6)
    assert found[1] == (scores.argmax(axis=1) == labels).sum()
