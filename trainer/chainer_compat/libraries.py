"""What Chainer 7.8.1 and onnx_chainer expect of optional libraries.

A module is supplied when it is imported, so that unused libraries cost no time.
"""

import ast
import copy
import importlib.machinery
import importlib.metadata
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType

from chainer.functions.math import sparse_matmul
from chainer.serializers import hdf5
from packaging.requirements import Requirement

from trainer.chainer_compat.functions import numpy_since, with_names
from trainer.chainer_compat.items import Items

ITEMS = Items()


def installed(requirement: str) -> bool:
    """Return whether a package is installed in a version that ``'name>=version'`` admits."""
    wanted = Requirement(requirement)
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return wanted.specifier.contains(version, prereleases=True)


class StandIn(Loader):
    """Finder and loader of a module that a function fills at import."""

    def __init__(self, name: str, fill: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.fill = fill

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == self.name:
            return importlib.util.spec_from_loader(name, self)
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        self.fill(module)


class Repaired(StandIn):
    """Finder and loader of an existing module that a function repairs after its import."""

    loader: Loader

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = super().find_spec(name) and importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.fill(module)


@ITEMS.add(
    'chainer.functions.sparse_matmul',
    'SciPy has taken no float16 in sparse matrices since 1.15',
    missing=lambda: installed('scipy>=1.15'),
)
def _sparse_matmul():
    multiply = sparse_matmul._coo_matmul_cpu

    def through_float32(data, row, column, shape, dense, dtype):
        data, dense = (a.astype('f') if a.dtype == 'e' else a for a in (data, dense))
        return multiply(data, row, column, shape, dense, dtype)

    sparse_matmul._coo_matmul_cpu = through_float32


@ITEMS.add(
    'chainer.serializers.HDF5Deserializer',
    'text is read as bytes since h5py 3.0',
    missing=lambda: installed('h5py>=3'),
)
def _hdf5():
    read = hdf5.HDF5Deserializer.__call__

    def read_text(self, key, value):
        if isinstance(value, str) and self.group is not None and key in self.group:
            return self.group[key].asstr()[()]
        return read(self, key, value)

    hdf5.HDF5Deserializer.__call__ = read_text


@ITEMS.add(
    'chainer.links.caffe.protobuf3.caffe_pb2',
    'protobuf refuses what its compiler generated before 3.19 since 4.0',
    missing=lambda: installed('protobuf>=4'),
)
def _caffe_messages():
    sys.meta_path.insert(0, StandIn('chainer.links.caffe.protobuf3.caffe_pb2', _fill_caffe_pb2))


def _fill_caffe_pb2(module):
    """Build the classes of Caffe's messages from the description inside the generated file."""
    from chainer.links.caffe import protobuf3
    from google.protobuf import descriptor_pool
    from google.protobuf.internal import builder

    generated = pathlib.Path(protobuf3.__file__).with_name('caffe_pb2.py')
    (description,) = (
        node.value.args[0].value
        for node in ast.walk(ast.parse(generated.read_bytes()))
        if isinstance(node, ast.keyword) and node.arg == 'serialized_pb'
    )
    file = descriptor_pool.Default().AddSerializedFile(description.encode('latin1'))
    builder.BuildMessageAndEnumDescriptors(file, vars(module))
    builder.BuildTopDescriptorsAndMessages(file, module.__name__, vars(module))


@ITEMS.add(
    'onnx.mapping',
    'gone since ONNX 1.19; onnx_chainer looks up in it which numbers stand for NumPy dtypes',
    missing=lambda: installed('onnx>=1.19'),
)
def _onnx_mapping():
    sys.meta_path.append(StandIn('onnx.mapping', _fill_onnx_mapping))


def _fill_onnx_mapping(module):
    from onnx import helper

    types = helper.get_all_tensor_dtypes()
    module.NP_TYPE_TO_TENSOR_TYPE = {helper.tensor_dtype_to_np_dtype(t): t for t in types}
    module.STORAGE_TENSOR_TYPE_TO_FIELD = {
        t: helper.tensor_dtype_to_field(t)
        for t in types
        if t == helper.tensor_dtype_to_storage_tensor_dtype(t)
    }


@ITEMS.add(
    'chainermn.iterators.create_multi_node_iterator',
    'an array of one element, which it takes for a number, is none since NumPy 2.4',
    missing=numpy_since('2.4'),
)
def _multi_node_iterator():
    sys.meta_path.insert(0, Repaired('chainermn.iterators.multi_node_iterator', _repair_slave))


def _repair_slave(module):
    slave = module._MultiNodeIteratorSlave
    slave.__init__ = with_names(slave.__init__, int=lambda array: int(array.item()))


@ITEMS.add(
    'chainermn.links.MultiNodeBatchNormalization',
    'a copy of super() is a super since Python 3.14; its __deepcopy__ expects one of itself',
    missing=lambda: sys.version_info >= (3, 14),
)
def _multi_node_normalization():
    sys.meta_path.insert(0, Repaired('chainermn.links.batch_normalization', _repair_deepcopy))


def _repair_deepcopy(module):
    def deepcopy(self, memo):
        memo[id(self.comm)] = self.comm  # an attribute that both have
        twin = memo[id(self)] = type(self).__new__(type(self))
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    module.MultiNodeBatchNormalization.__deepcopy__ = deepcopy
