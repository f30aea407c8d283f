"""Numbers of oneDNN's C API: dnnl_types.h of version 3.2."""

import ctypes

# Kinds of propagation.
TRAINING, BACKWARD = ctypes.c_int(64), ctypes.c_int(128)

# Algorithms.
DIRECT, RELU, RELU_BY_OUTPUT = (ctypes.c_int(n) for n in (1, 0x20, 0x100))
MAX, MEAN_OF_VALID, ADD, MULTIPLY = (ctypes.c_int(n) for n in (0x1FF, 0x3FF, 0x1FFF0, 0x1FFF1))

# Flags of batch normalisation.
SCALE_SHIFT, FUSE_RELU = 2 | 4, 8

# Queries for descriptors of memories.
OF_WEIGHTS, OF_GRADIENT, OF_WORKSPACE, OF_SCRATCHPAD = 131, 132, 135, 136

# Arguments.
SRC, SRC_1, DST, WEIGHTS, BIAS = 1, 2, 17, 33, 41
MEAN, VARIANCE, GAMMA, BETA, WORKSPACE, SCRATCHPAD = 49, 50, 51, 52, 64, 80
DIFF_SRC, DIFF_DST, DIFF_WEIGHTS, DIFF_GAMMA, DIFF_BETA = 129, 145, 161, 255, 256
POST_OP = 32768
