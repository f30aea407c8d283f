"""Training on Chainer's Trainer: :func:`trainer.training.run.train` does it all."""
