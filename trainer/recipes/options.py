"""The options of a training run: one table.

It defines the flags of ``main.py`` and their help, the checks of options from Python and from
files, the record of a run, and the recipes. It imports neither NumPy nor Chainer, so that
``--help`` and errors in flags appear at once.
"""

import dataclasses
from typing import Any

from trainer import datasets, engines, recipes, values
from trainer.networks import table as networks
from trainer.recipes.spec import GENERAL, option

_NETWORK = 'network'
_DATA = 'data'
_TRAINING = 'training'
_RATE = 'learning rate'
_AUGMENTATION = 'augmentation, in addition to that of the preprocessing'
_TRANSFER = 'transfer: other classes for a network that is trained already'
_BY_HAND = 'going on by hand, as in 2017'


_WHOLE, _POSITIVE = values.positive(int), values.positive(float)
_NOT_NEGATIVE = values.not_negative(float)


def _without_quick(available):
    # 'quick' is chosen by --quick only.
    return lambda: tuple(name for name in available() if name != 'quick')


def _preprocessing():
    from trainer.transforms.table import CLASSES

    return tuple(CLASSES)


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a run. A recipe sets those that differ from these defaults.

    :data:`SPECS` describes each option and its values. Sizes that are ``None`` are left to the
    network (:mod:`trainer.networks.table`).
    """

    recipe: str = option(
        'original',
        'train as this source does; other flags override its values',
        choices=_without_quick(recipes.available),
    )
    quick: bool = option(
        False, 'a small network on 2,500 images that are part of the project: a minute on a CPU'
    )
    save_path: str = option(
        './',
        'folder for models, snapshots, log, figures (with --quick or --recipe: runs/ and its name)',
        GENERAL,
        '-p',
        metavar='DIR',
        free=True,
    )
    gpu: int = option(
        -1,
        'GPU number, -1 for the CPU; several processes take this one and the next',
        GENERAL,
        '-g',
        kind=int,
        free=True,
    )
    engine: str | None = option(
        None,
        'what computes: on a CPU onednn (extra cpu), numpy or reference, on a GPU cudnn (extra '
        'cuda13) or reference (default: the first of them that can be used)',
        choices=lambda: tuple(dict.fromkeys(engines.ON_CPU + engines.ON_GPU)),
        free=True,
    )
    precision: str | None = option(
        None,
        'true float32; by cudnn TF32, or float16 with float32 sums (mixed); by onednn bfloat16 '
        'with float32 sums, where the CPU has it (default: mixed by cudnn, else float32)',
        choices=lambda: engines.PRECISIONS,
        free=True,
    )
    seed: int = option(
        0, 'of the initial weights, the order and the augmentation', kind=values.not_negative(int)
    )
    workers: int | None = option(
        None,
        'processes that load data; 0: the main process does (default: on a CPU 0, and one per four '
        'cores for images in files; on a GPU up to 4, for files one per core)',
        kind=values.not_negative(int),
        metavar='N',
        free=True,
    )
    threads: int | None = option(
        None, 'threads on a CPU (default: one per core)', kind=_WHOLE, metavar='N'
    )

    tensorboard: bool = option(
        False,
        "write the log for TensorBoard as well (extra tensorboard), to -p's tensorboard",
        free=True,
    )

    network: str = option(
        'original',
        "the 2017 program's for CIFAR, the paper's for CIFAR, or the paper's for ImageNet; this "
        "with squeeze-and-excitation (_se), ResNet-D's stem and shortcuts (_d), or both",
        _NETWORK,
        choices=networks.available,
    )
    depth: int | None = option(
        None,
        'layers: 9n + 2 for CIFAR, 50, 101 or 152 for ilsvrc',
        _NETWORK,
        '--layers',
        kind=_WHOLE,
        size=True,
    )
    block_num: tuple[int, ...] | None = option(
        None,
        'blocks in each stage, instead of --depth',
        _NETWORK,
        kind=_WHOLE,
        many='+',
        metavar='N',
        size=True,
    )
    C: int | None = option(None, 'cardinality', _NETWORK, '-C', kind=_WHOLE, size=True)
    d: int | None = option(None, 'base width', _NETWORK, '-d', kind=_WHOLE, size=True)
    multi: float | None = option(
        None,
        'multiplier of the output channels',
        _NETWORK,
        '-multi',
        kind=_POSITIVE,
        flag_kind=_WHOLE,
        size=True,
    )
    widen_factor: float | None = option(
        None,
        'output channels of the first stage, in units of 64 (paper)',
        _NETWORK,
        kind=_POSITIVE,
        flag_kind=_WHOLE,
        size=True,
    )
    shortcut: str | None = option(
        None, 'type of the shortcuts', _NETWORK, choices=lambda: ('A', 'B', 'C'), size=True
    )
    initialization: str = option(
        'orthonormal',
        'initial weights, as which source draws them',
        _NETWORK,
        choices=lambda: ('orthonormal', 'torch7', 'prlz77', 'pytorch'),
    )
    zero_init_last: bool = option(
        False,
        "begin with each block's last scale of batch normalisation at 0: blocks are identities",
        _NETWORK,
    )

    dataset: str = option('cifar10', 'dataset', _DATA, choices=_without_quick(datasets.available))
    data: str | None = option(
        None,
        'folder or archive with the dataset, instead of downloading it once; for --dataset '
        'folder one of class folders, DIR/train/<class> and DIR/val/<class>, or DIR/<class>, of '
        'which a fifth is then kept for testing; for lmdb the same of databases',
        _DATA,
        metavar='PATH',
        path=True,
        free=True,
    )
    preprocessing: str = option(
        'DataAugmentationCifar10NormalizeSmall',
        'a class of data_augmentation',
        _DATA,
        choices=_preprocessing,
        metavar='CLASS',
    )
    sampling: str = option(
        'every-image',
        "which images make an epoch: 'every-image' once; 'original' draws each batch anew and "
        "visits 63 %% of them; 'full-batches' leaves out the last, smaller batch",
        _DATA,
        choices=lambda: ('every-image', 'full-batches', 'original'),
    )

    auto_augment: str = option(
        'none',
        "'ta_wide': one operation of TrivialAugment for each image",
        _AUGMENTATION,
        choices=lambda: ('none', 'ta_wide'),
    )
    mixup: float = option(
        0.0,
        'mix the images and labels of a batch: share drawn from a beta distribution of this alpha',
        _AUGMENTATION,
        kind=_NOT_NEGATIVE,
        metavar='ALPHA',
    )
    cutmix: float = option(
        0.0,
        'put a box of one image into another, its area drawn likewise; with --mixup either of them',
        _AUGMENTATION,
        kind=_NOT_NEGATIVE,
        metavar='ALPHA',
    )
    reprob: float = option(
        0.0,
        'erase a random rectangle of this share of the images',
        _AUGMENTATION,
        kind=values.share,
        metavar='SHARE',
    )
    repeated_augmentation: int = option(
        1,
        'have each image N times in a batch, augmented anew; an epoch is as long, of fewer images',
        _AUGMENTATION,
        kind=_WHOLE,
        metavar='N',
    )

    epoch: int | None = option(None, 'last epoch', _TRAINING, '-e', kind=_WHOLE, free=True)
    patience: int | None = option(
        None,
        'end if the test accuracy has not improved for this many epochs',
        _TRAINING,
        kind=_WHOLE,
        free=True,
        metavar='EPOCHS',
    )
    batch: int | None = option(
        None, 'images in a batch, of all processes together', _TRAINING, '-b', kind=_WHOLE
    )
    batch_scaling: str = option(
        'none',
        "what another batch than the recipe's scales: 'lr' in proportion, 'epochs' (and "
        '--lr-steps) inversely, or nothing',
        _TRAINING,
        choices=lambda: ('none', 'lr', 'epochs'),
    )
    train_batch_divide: int = option(
        1, 'number of chunks in which a batch is computed', _TRAINING, '-trb', kind=_WHOLE
    )
    test_batch_divide: int = option(1, 'the same for testing', _TRAINING, '-teb', kind=_WHOLE)
    optimizer: str = option(
        'momentum',
        'SGD as Chainer has it, or as Torch has it',
        _TRAINING,
        choices=lambda: ('momentum', 'torch-momentum', 'torch-nesterov'),
    )
    momentum: float = option(0.9, 'momentum', _TRAINING, kind=_NOT_NEGATIVE)
    weight_decay: float | None = option(
        None, 'weight decay, on all parameters', _TRAINING, kind=_NOT_NEGATIVE
    )
    norm_weight_decay: float | None = option(
        None,
        'another one of the scales and shifts of batch normalisation',
        _TRAINING,
        kind=_NOT_NEGATIVE,
        metavar='DECAY',
    )
    bias_weight_decay: float | None = option(
        None, 'another one of biases', _TRAINING, kind=_NOT_NEGATIVE, metavar='DECAY'
    )
    clip_grad: float | None = option(
        None,
        'scale gradients whose norm, over all of them, is above this down to it',
        _TRAINING,
        kind=_POSITIVE,
        metavar='NORM',
    )
    label_smoothing: float = option(
        0.0,
        'spread this share of each label over all classes',
        _TRAINING,
        kind=values.share,
        metavar='SHARE',
    )
    ema_decay: float = option(
        0.0,
        'evaluate and save a moving average of the weights of this decay; 0: the weights',
        _TRAINING,
        kind=values.share,
        metavar='DECAY',
    )
    ema_steps: int = option(
        1,
        'take the average after every N-th update of an epoch',
        _TRAINING,
        kind=_WHOLE,
        metavar='N',
    )

    lr: float | None = option(None, 'learning rate at the start', _RATE, '-lr', kind=_POSITIVE)
    lr_schedule: str = option(
        'steps',
        'divided by 10 after the epochs --lr-steps, after every --lr-period epochs, or falling '
        'along a cosine that begins anew every --lr-period',
        _RATE,
        choices=lambda: ('steps', 'every', 'cosine'),
    )
    lr_steps: tuple[float, ...] = option(
        (),
        'epochs, or shares of all epochs where they are below 1',
        _RATE,
        kind=values.epochs,
        many='*',
        metavar='EPOCH',
    )
    lr_period: float = option(
        0, 'the same; 0: all epochs', _RATE, kind=values.epochs, metavar='EPOCHS'
    )
    lr_min: float = option(0.0, 'where the cosine ends', _RATE, kind=_NOT_NEGATIVE)
    warmup: int = option(
        0, 'epochs in which the learning rate climbs', _RATE, kind=_WHOLE, metavar='EPOCHS'
    )
    warmup_by: str = option(
        'update',
        "'update': from 0, update by update, what the schedule gives; 'epoch': from a hundredth, "
        'epoch by epoch, and the schedule begins afterwards',
        _RATE,
        choices=lambda: ('update', 'epoch'),
    )
    schedule_epoch: int | None = option(
        None,
        'all epochs that shares are of (default: the first -e of the run)',
        _RATE,
        kind=_WHOLE,
        metavar='EPOCHS',
    )

    load_model: str | None = option(
        None,
        'start from the weights in this file: npz, Torch7, PyTorch or safetensors',
        _TRANSFER,
        '-m',
        '--retrain',
        metavar='FILE',
        path=True,
    )
    reset_classifier: bool = option(
        False, "give it a new classifier, for the dataset's classes", _TRANSFER
    )
    freeze: tuple[str, ...] = option(
        (),
        'leave these layers as they are, batch normalisation too: stem, stage1, stage2/block1, ...',
        _TRANSFER,
        many='+',
        metavar='LAYER',
    )
    head_lr: float = option(
        1.0,
        'factor of the learning rate for the classifier',
        _TRANSFER,
        kind=_POSITIVE,
        metavar='TIMES',
    )

    load_optimizer: str | None = option(
        None,
        "the optimizer's state: a snapshot, or a file of Chainer's save_npz",
        _BY_HAND,
        '-o',
        metavar='FILE',
        path=True,
    )
    load_log: str | None = option(
        None, 'log.json of the epochs before -s', _BY_HAND, '-l', metavar='FILE', path=True
    )
    start_epoch: int = option(1, 'first epoch', _BY_HAND, '-s', kind=_WHOLE)

    def replace(self, **changes: Any) -> 'Options':
        """Return these options with some of them changed."""
        return dataclasses.replace(self, **changes)


#: Name -> specification of the option.
SPECS = {field.name: field.metadata['spec'] for field in dataclasses.fields(Options)}

#: Name -> default value.
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Options)}

#: Options that are sizes of the network.
SIZES = tuple(name for name, spec in SPECS.items() if spec.size)

#: Options that may change when a run is resumed.
FREE = frozenset(name for name, spec in SPECS.items() if spec.free)

#: Options that are names of files.
PATHS = tuple(name for name, spec in SPECS.items() if spec.path)
