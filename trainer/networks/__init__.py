"""The parts of the networks. The networks themselves are in the top-level modules
``resnext.py`` (CIFAR) and ``resnext_ilsvrc.py`` (ImageNet)."""
