"""What the networks are made of. The networks themselves are at the top:
``resnext.py`` (CIFAR) and ``resnext_ilsvrc.py`` (ImageNet)."""
