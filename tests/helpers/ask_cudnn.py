"""Ask cuDNN, on a machine without a GPU, which graphs of a network have a plan on an H200.

    python tests/helpers/ask_cudnn.py NETWORK PRECISION

Prints JSON: for each kind of graph the shapes (images, weights, stride) that have a plan and
those that have none; and whether a plan that is compiled at run time could be built. cuDNN
takes a description of a GPU in place of one. What it compiles at run time also looks for a
libcuda: :func:`environment` has one that computes nothing.
"""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

H200 = {
    'deviceName': 'NVIDIA H200',
    'maxGridSize': [2147483647, 65535, 65535],
    'maxBlockSize': [1024, 1024, 64],
    'regsPerBlock': 65536,
    'multiProcessorCount': 132,
    'warpSize': 32,
    'maxSharedMemoryPerBlock': 49152,
    'maxSharedMemoryPerBlockOptin': 232448,
    'reservedSharedMemoryPerBlock': 1024,
    'maxRegistersPerSM': 65536,
    'maxCtasPerSM': 32,
    'maxThreadsPerBlock': 1024,
    'maxThreadsPerSM': 2048,
    'pciDeviceId': 0,
    'isTccDriver': 0,
    'supportCoopLaunch': 1,
    'totalGlobalMem': 150000000000,
    'smClockRateKHz': 1980000,
    'memClockRateKHz': 3201000,
    'l2CacheSize': 62914560,
    'cudaDeviceId': 0,
    'deviceVer': 900,
    'driverVer': 13000,
}

#: What cuDNN looks up in libcuda, and what is to return a handle.
HANDLES = [
    'CtxGetCurrent',
    'LibraryGetKernel',
    'LibraryLoadData',
    'ModuleGetFunction',
    'ModuleLoadData',
]
HANDLES += ['ModuleLoadDataEx']
NAMES = [
    'CtxGetDevice',
    'CtxGetLimit',
    'CtxPopCurrent',
    'CtxPushCurrent',
    'DeviceGet',
    'DeviceGetAttribute',
    'DeviceGetCount',
    'DevicePrimaryCtxRelease',
    'DevicePrimaryCtxReset',
    'DevicePrimaryCtxRetain',
    'FuncGetAttribute',
    'FuncSetAttribute',
    'GetErrorName',
    'GetErrorString',
    'GetProcAddress_v2',
    'KernelGetAttribute',
    'KernelSetAttribute',
    'LaunchCooperativeKernel',
    'LaunchKernel',
    'LaunchKernelEx',
    'LibraryLoadFromFile',
    'LibraryUnload',
    'LinkAddData',
    'LinkAddData_v2',
    'LinkAddFile_v2',
    'LinkComplete',
    'LinkCreate',
    'LinkCreate_v2',
    'LinkDestroy',
    'MemcpyDtoH_v2',
    'ModuleGetGlobal_v2',
    'ModuleLoadFatBinary',
    'ModuleUnload',
    'OccupancyMaxActiveBlocksPerMultiprocessor',
    'OccupancyMaxPotentialClusterSize',
    'StreamGetCtx',
    'StreamSynchronize',
    'TensorMapEncodeTiled',
]


def environment(folder):
    """Return the variables of a process for this program, with a libcuda in a folder."""
    code = 'int cuDriverGetVersion(int *v) { *v = 13000; return 0; }\n'
    code += 'int cuInit(unsigned flags) { return 100; }\n'
    code += ''.join(f'int cu{n}(void **p) {{ *p = (void *)4096; return 0; }}\n' for n in HANDLES)
    for name in NAMES:
        succeeds = name.startswith(('Ctx', 'Module', 'Func'))
        code += f'int cu{name}(void) {{ return {0 if succeeds else 500}; }}\n'
    command = ['gcc', '-w', '-shared', '-fPIC', '-Wl,-soname,libcuda.so.1', '-x', 'c', '-', '-o']
    subprocess.run([*command, folder / 'libcuda.so.1'], input=code, text=True, check=True)
    return dict(os.environ, LD_LIBRARY_PATH=str(folder), PYTHONPATH=str(ROOT))


def builders(layer, precision):
    """Yield kind of graph, builder and arguments for all that a layer may use."""
    from trainer.engines import autograd
    from trainer.engines.cudnn import graphs

    dtype = 'e' if precision == 'mixed' else 'f'
    x, w, stride, pad = layer.x, layer.w, layer.stride, layer.pad
    y = graphs.out_shape(x, w, stride, pad)
    yield 'forward', graphs.build_conv_forward, (x, w, stride, pad, False, dtype)
    if layer.groups == 1 and precision == 'mixed':
        yield 'forward and sums', graphs.build_conv_forward, (x, w, stride, pad, True, dtype)
    for added in (False, True):
        kind = 'data gradient' + ' and addition' * added
        yield kind, graphs.build_conv_backward_data, (y, w, x, stride, pad, added, dtype)
    for out in {'f', dtype}:
        kind = 'weight gradient' + ' in float32' * (out != dtype)
        yield kind, graphs.build_conv_backward_weights, (x, y, w, stride, pad, out, dtype)
    residual = layer.kind >= autograd.ADD
    flags = residual, layer.kind != autograd.PLAIN, layer.kind == autograd.RELU_ADD
    yield 'inference', graphs.build_conv_bias, (x, w, stride, pad, *flags, dtype)


def builds(graph):
    """Return whether one of a graph's plans can be built: compiled, and loaded."""
    for index in range(graph.graph.get_execution_plan_count()):
        try:
            graph.graph.build_plan_at_index(index)
            return True
        except graph.cudnn.cudnnGraphNotSupportedError:
            pass
    return False


def main():
    network, precision = sys.argv[1:]
    sys.path.append(str(ROOT / 'benchmarks'))
    import gpu_layers

    from trainer.engines.cudnn import graphs, library

    h200 = library.Device(90, None, library.frontend().create_device_properties(json.dumps(H200)))
    build, side = gpu_layers.NETWORKS[network]
    found, compiled = {}, None
    for layer in gpu_layers.layers_of(build(), 128, side):
        for kind, builder, arguments in builders(layer, precision):
            having, lacking = found.setdefault(kind, ([], []))
            try:
                graph = builder(*arguments, precision, h200)
            except graphs.NoPlan:
                lacking.append((layer.x, layer.w, layer.stride))
            else:
                having.append((layer.x, layer.w, layer.stride))
                if kind == 'inference' and compiled is None:
                    compiled = builds(graph)
    print(json.dumps({'graphs': found, 'compiled': compiled}))


if __name__ == '__main__':
    main()
