"""Chainer's functions that fail with NumPy 2 or current libraries: each works again."""

import chainer
import chainer.functions as F
import numpy as np
import pytest
from chainer import testing


@pytest.mark.parametrize('mode', ['bilinear', 'nearest'])
def test_resize_images(mode):
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    y = F.resize_images(x, (4, 4), mode=mode, align_corners=False).array[0, 0]
    nearest = np.repeat(np.repeat(x[0, 0], 2, 0), 2, 1)
    if mode == 'nearest':
        np.testing.assert_array_equal(y, nearest)
    else:
        np.testing.assert_allclose(y[0], [0, 0.25, 0.75, 1])
        np.testing.assert_allclose(y[:, 0], [0, 0.5, 1.5, 2])


def test_pad_sequence_with_minus_one():
    arrays = [np.array([1, 2], np.uint8), np.array([3], np.uint8)]
    y = F.pad_sequence(arrays, padding=-1).array
    assert y.dtype == np.uint8
    assert y.tolist() == [[1, 2], [3, 255]]
    floats = [a.astype(np.float16) for a in arrays]
    assert F.pad_sequence(floats, padding=-1).array.tolist() == [[1, 2], [3, -1]]


def test_categorical_log_prob():
    p = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
    for x in (np.array([1, 0]), chainer.Variable(np.array([1, 0]))):
        y = chainer.distributions.Categorical(p=p).log_prob(x)
        np.testing.assert_allclose(y.array, np.log([0.75, 0.5]), rtol=1e-6)


@pytest.mark.filterwarnings('error')
def test_concatenation_with_padding():
    arrays = [np.ones((1, 3), np.float32), np.ones((2, 1), np.float32)]
    y = chainer.dataset.concat_examples(arrays, padding=5)
    assert y.tolist() == [[[1, 1, 1], [5, 5, 5]], [[1, 5, 5], [1, 5, 5]]]


@pytest.mark.filterwarnings('error')
def test_fix():
    x = np.array([-1.5, 0.25, 2.75], np.float16)
    for y in (F.fix(x), F.fix(chainer.Variable(x))):
        assert y.dtype == np.float16
        assert y.array.tolist() == [-1, 0, 2]


@pytest.mark.filterwarnings('error')
def test_maxout_with_functions_as_initializers():
    def fill(array):
        array[...] = np.arange(array.size).reshape(array.shape[::-1]).T

    link = chainer.links.Maxout(2, 3, 4, initialW=fill, initial_bias=fill)
    W, b = np.empty((3, 4, 2), np.float32), np.empty((3, 4), np.float32)
    fill(W)
    fill(b)
    np.testing.assert_array_equal(link.linear.W.array, W.reshape(12, 2))
    np.testing.assert_array_equal(link.linear.b.array, b.reshape(12))


def test_debug_print_names_the_device():
    assert '- device: CPU\n' in chainer.Variable(np.zeros(3)).debug_print()


@pytest.mark.filterwarnings('error::DeprecationWarning')
def test_multiprocess_iterator_without_warning():
    iterator = chainer.iterators.MultiprocessIterator(
        list(range(4)), 2, repeat=False, shuffle=False, n_processes=1
    )
    assert list(iterator) == [[0, 1], [2, 3]]
    iterator.finalize()


def test_text_in_hdf5(tmp_path):
    h5py = pytest.importorskip('h5py', reason='needs h5py')
    with h5py.File(tmp_path / 'a.h5', 'w') as f:
        f.create_dataset('text', data='abc')
        f.create_dataset('number', data=3)
        read = chainer.serializers.HDF5Deserializer(f)
        assert read('text', '') == 'abc'
        assert read('number', 0) == 3


def test_sparse_matmul_of_float16():
    pytest.importorskip('scipy', reason='needs SciPy')
    a = np.array([[0, 2], [3, 0]], np.float16)
    b = np.array([[1, 4], [5, 6]], np.float16)
    y = F.sparse_matmul(chainer.utils.to_coo(a), b).array
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, a @ b)


def test_a_caffe_model_is_written_and_read(tmp_path):
    link = chainer.Sequential(chainer.links.Linear(3, 2))
    from chainer.exporters import caffe

    x = chainer.Variable(np.arange(6, dtype=np.float32).reshape(2, 3))
    with chainer.using_config('train', False):
        caffe.export(link, [x], str(tmp_path), graph_name='net')
    from chainer.links.caffe import CaffeFunction

    read = CaffeFunction(str(tmp_path / 'chainer_model.caffemodel'))
    (name,) = (child.name for child in read.children())
    np.testing.assert_array_equal(read[name].W.array, link[0].W.array)


def test_onnx_chainer_exports(tmp_path):
    onnx = pytest.importorskip('onnx', reason='needs ONNX (the onnx extra)')
    import onnx_chainer

    model = onnx_chainer.export(chainer.links.Linear(3, 2), np.zeros((1, 3), np.float32))
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ['Gemm']


def test_versions_of_packages_are_compared():
    def runs(requirement):
        return not getattr(
            testing.with_requires(requirement)(lambda: None), '__unittest_skip__', False
        )

    assert runs('numpy')
    assert runs('numpy>=1.14')
    assert not runs('numpy<1.14')
    assert not runs('a-package-that-nobody-has')
