"""Training with Chainer's Trainer; the entry is :func:`trainer.training.run.train`."""
