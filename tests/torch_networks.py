"""Networks in PyTorch, whose parts are called as in the projects that the converter speaks.

``python tests/torch_networks.py`` writes the fixtures ``pytorch_*`` anew (needs PyTorch).
"""

import collections
import copy
import functools
import pathlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

# Tests share their cores; more threads only wait for one another.
torch.set_num_threads(1)


def conv(channels, out, size, stride=1, groups=1):
    return nn.Conv2d(channels, out, size, stride, size // 2, groups=groups, bias=False)


class Sizes(collections.namedtuple('Sizes', 'blocks groups width out stem classes')):
    """width: of the first stage's 3x3 convolution, out: after its blocks; both double."""

    def stages(self):
        channels = self.stem
        for i, blocks in enumerate(self.blocks):
            for j in range(blocks):
                yield (i, j, channels, self.width * 2**i, self.out * 2**i, 2 if i and not j else 1)
                channels = self.out * 2**i


class Bottleneck(nn.Module):
    """torchvision's names."""

    def __init__(self, channels, width, out, stride, groups):
        super().__init__()
        self.conv1, self.bn1 = conv(channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride, groups), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, out, 1), nn.BatchNorm2d(out)
        self.downsample = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(conv(channels, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(h))
        return F.relu(h + (x if self.downsample is None else self.downsample(x)))


class Torchvision(nn.Module):
    """torchvision's, timm's and Lornatang's names."""

    def __init__(self, sizes):
        super().__init__()
        self.stages = len(sizes.blocks)
        self.conv1, self.bn1 = conv(3, sizes.stem, 7, 2), nn.BatchNorm2d(sizes.stem)
        layers = [nn.Sequential() for _ in sizes.blocks]
        for i, _, channels, width, out, stride in sizes.stages():
            layers[i].append(Bottleneck(channels, width, out, stride, sizes.groups))
        for i, layer in enumerate(layers, 1):
            setattr(self, f'layer{i}', layer)
        self.fc = nn.Linear(out, sizes.classes)

    def forward(self, x):
        h = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for i in range(self.stages):
            h = getattr(self, f'layer{i + 1}')(h)
        return self.fc(h.mean((2, 3)))


class Prlz77Block(nn.Module):
    def __init__(self, channels, width, out, stride, groups):
        super().__init__()
        self.conv_reduce, self.bn_reduce = conv(channels, width, 1), nn.BatchNorm2d(width)
        self.conv_conv, self.bn = conv(width, width, 3, stride, groups), nn.BatchNorm2d(width)
        self.conv_expand, self.bn_expand = conv(width, out, 1), nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if channels != out:
            self.shortcut.add_module('shortcut_conv', conv(channels, out, 1, stride))
            self.shortcut.add_module('shortcut_bn', nn.BatchNorm2d(out))

    def forward(self, x):
        h = F.relu(self.bn_reduce(self.conv_reduce(x)))
        h = F.relu(self.bn(self.conv_conv(h)))
        return F.relu(self.bn_expand(self.conv_expand(h)) + self.shortcut(x))


class Prlz77(nn.Module):
    """The names of prlz77/ResNeXt.pytorch."""

    def __init__(self, sizes):
        super().__init__()
        self.conv_1_3x3, self.bn_1 = conv(3, sizes.stem, 3), nn.BatchNorm2d(sizes.stem)
        self.stages = [f'stage_{i + 1}' for i in range(len(sizes.blocks))]
        for name in self.stages:
            setattr(self, name, nn.Sequential())
        for i, j, channels, width, out, stride in sizes.stages():
            getattr(self, self.stages[i]).add_module(
                f'{self.stages[i]}_bottleneck_{j}',
                Prlz77Block(channels, width, out, stride, sizes.groups),
            )
        self.classifier = nn.Linear(out, sizes.classes)

    def forward(self, x):
        h = F.relu(self.bn_1(self.conv_1_3x3(x)))
        for name in self.stages:
            h = getattr(self, name)(h)
        return self.classifier(h.mean((2, 3)))


class Function(nn.Module):
    """A module without numbers: nn.View, nn.CAddTable and the like."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Table(nn.Sequential):
    """nn.ConcatTable: a list of what its modules give."""

    def forward(self, x):
        return [module(x) for module in self]


def torch7_modules(sizes, imagenet, nested, features_only=False):
    """The modules of a Torch7 file, each as one PyTorch module in the same nesting."""
    stem = [
        conv(3, sizes.stem, 7 if imagenet else 3, 2 if imagenet else 1),
        nn.BatchNorm2d(sizes.stem),
        nn.ReLU(),
    ]
    if imagenet:
        stem.append(nn.MaxPool2d(3, 2, 1))
    stages = [nn.Sequential() for _ in sizes.blocks]
    for i, _, channels, width, out, stride in sizes.stages():
        inner = [
            conv(channels, width, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            conv(width, width, 3, stride, sizes.groups),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        inner = [nn.Sequential(*inner)] if nested else inner
        main = nn.Sequential(*inner, conv(width, out, 1), nn.BatchNorm2d(out))
        shortcut = Function(lambda x: x)
        if channels != out or stride > 1:
            shortcut = nn.Sequential(conv(channels, out, 1, stride), nn.BatchNorm2d(out))
        stages[i].append(nn.Sequential(Table(main, shortcut), Function(sum), nn.ReLU()))
    modules = stem + stages
    if not features_only:
        modules += [
            nn.AdaptiveAvgPool2d(1),
            Function(lambda x: x.flatten(1)),
            nn.Sequential(Function(lambda x: x), nn.Linear(out, sizes.classes)),
        ]
    return nn.Sequential(*modules)


class Cadene(nn.Module):
    """The names of Cadene/pretrained-models.pytorch."""

    def __init__(self, sizes):
        super().__init__()
        self.features = torch7_modules(sizes, True, True, features_only=True)
        self.last_linear = nn.Linear(sizes.out * 2 ** (len(sizes.blocks) - 1), sizes.classes)

    def forward(self, x):
        return self.last_linear(self.features(x).mean((2, 3)))


IMAGENET = Sizes((2, 1, 1), 2, 4, 8, 4, 5)
CIFAR = Sizes((2, 1, 1), 2, 4, 8, 4, 7)

#: name of the naming -> (a function that builds a network, whether it is for ImageNet).
BUILD = {
    'torchvision': (lambda: Torchvision(IMAGENET), True),
    'timm': (lambda: Torchvision(IMAGENET._replace(blocks=(1, 2, 11, 1))), True),
    'lornatang': (lambda: Torchvision(IMAGENET._replace(groups=4, stem=8)), True),
    'clcarwin': (lambda: torch7_modules(IMAGENET, True, True), True),
    'clcarwin, CIFAR': (lambda: torch7_modules(CIFAR, False, True), False),
    'clcarwin-flat': (lambda: torch7_modules(IMAGENET, True, False), True),
    'clcarwin-flat, CIFAR': (lambda: torch7_modules(CIFAR, False, False), False),
    'cadene': (lambda: Cadene(IMAGENET), True),
    'prlz77': (lambda: Prlz77(CIFAR), False),
}


def randomise(network, seed=0):
    """Give a network weights and running statistics as after training."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith('num_batches_tracked'):
            tensor.fill_(int(torch.randint(1, 10**6, (), generator=generator)))
        elif name.endswith('running_var'):
            tensor.uniform_(0.5, 2, generator=generator)
        else:
            tensor.normal_(0, 1, generator=generator)
            if tensor.ndim > 1:
                tensor *= (2 / tensor[0].numel()) ** 0.5
    return network.eval()


def compute(network, x):
    """Return the scores of float32 images, as PyTorch computes them."""
    with torch.no_grad():
        return network(torch.from_numpy(x)).numpy()


def training_state(network):
    """What Lornatang's program saves: two state dicts and the optimizer's and scheduler's."""
    average = torch.optim.swa_utils.AveragedModel(network)
    randomise(average.module, 1)
    optimizer = torch.optim.SGD(network.parameters(), 0, 0.9)
    sum(p.sum() for p in network.parameters()).backward()
    optimizer.step()  # of length 0: for its state alone
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60])
    return {
        'epoch': 3,
        'best_acc1': torch.tensor(71.5),
        'state_dict': network.state_dict(),
        'ema_state_dict': average.state_dict(),
        'optimizer': optimizer.state_dict(),
        'scheduler': schedule.state_dict(),
    }


def write_fixtures(folder):
    """Write a file of each naming in both formats, and what PyTorch computes with it."""
    legacy = functools.partial(torch.save, _use_new_zipfile_serialization=False)
    x = {
        True: np.random.default_rng(0).normal(size=(2, 3, 48, 40)).astype(np.float32),
        False: np.random.default_rng(1).normal(size=(2, 3, 16, 16)).astype(np.float32),
    }
    numbers = {'imagenet': x[True], 'cifar': x[False]}

    def write(name, naming, save, content):
        build, imagenet = BUILD[naming]
        network = randomise(build())
        numbers[name] = compute(network, x[imagenet])
        save(content(network), folder / f'pytorch_{name}.pth')

    write('torchvision', 'torchvision', torch.save, lambda n: n.state_dict())
    write('clcarwin', 'clcarwin', legacy, lambda n: n.state_dict())
    write('prlz77', 'prlz77', legacy, lambda n: nn.DataParallel(n).state_dict())
    write('lornatang', 'lornatang', torch.save, lambda n: training_state(copy.deepcopy(n)))
    build, _ = BUILD['torchvision']
    network = randomise(build()).bfloat16()
    numbers['bfloat16'] = compute(network.float(), x[True])
    torch.save(network.bfloat16().state_dict(), folder / 'pytorch_bfloat16.pth')
    np.savez_compressed(folder / 'pytorch_outputs.npz', **numbers)


if __name__ == '__main__':
    write_fixtures(pathlib.Path(__file__).parent / 'fixtures')
