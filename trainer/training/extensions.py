"""What happens between updates: learning rate, evaluation, models on disk."""
import os

import chainer
from chainer.training import extension

from trainer.datasets import loading
from trainer.evaluation import Tally

#: Observations, by Chainer's names.
ACCURACY = 'validation/main/accuracy'


class LearningRate(extension.Extension):
    """Set the learning rate from the number of epochs done, and report it as ``lr``.

    Args:
        schedule (callable): ``schedule(epochs done)`` gives the learning rate.
    """

    trigger = 1, 'iteration'
    priority = extension.PRIORITY_EDITOR

    def __init__(self, schedule):
        self.schedule = schedule

    def initialize(self, trainer):
        self._optimizer = trainer.updater.get_optimizer('main')
        self._optimizer.lr = self.schedule(trainer.updater.epoch)

    def __call__(self, trainer):
        if trainer.updater.is_new_epoch:  # once, so that no mean of it is logged
            chainer.report({'lr': self._optimizer.lr})
        self._optimizer.lr = self.schedule(trainer.updater.epoch)


def steps(lr, lr_steps):
    """Return a schedule: ``lr``, divided by 10 after each of the epochs ``lr_steps``."""
    return lambda epoch: lr / 10 ** sum(epoch >= step for step in lr_steps)


class Evaluator(chainer.training.extensions.Evaluator):
    """Chainer's evaluator with the original's numbers.

    Reports loss, accuracy and top5_accuracy, and accuracy/<label> of each class;
    keeps the :class:`~trainer.evaluation.Tally` as ``tally``.
    """

    tally = None

    def __init__(self, iterator, network, device):
        super().__init__(iterator, network, device=device)

    def evaluate(self):
        iterator, network = self.get_iterator('main'), self.get_target('main')
        iterator.reset()
        self.tally = Tally(network.category_num)
        with chainer.no_backprop_mode():
            for pieces in iterator:
                x, t = loading.join(pieces)
                y = network(chainer.Variable(self.device.send(x)))
                self.tally.add(chainer.backends.cuda.to_cpu(y.array), t)
        observation = {}
        with chainer.reporter.report_scope(observation):
            chainer.report({'loss': self.tally.loss, 'accuracy': self.tally.accuracy,
                            'top5_accuracy': self.tally.top5_accuracy}, network)
            chainer.report({'accuracy/{}'.format(i): a
                            for i, a in enumerate(self.tally.class_accuracy)}, network)
        return observation


class SaveModel(extension.Extension):
    """Save the network after each epoch, and the best one so far under another name.

    Args:
        network (trainer.networks.base.Network): The network.
        folder (str): Where to; must exist.
    """

    trigger = 1, 'epoch'
    priority = extension.PRIORITY_READER - 10

    def __init__(self, network, folder):
        self.network = network
        self.folder = folder
        self.best = -1.

    def path(self, what):
        """Return the file of an epoch's number, or of 'best'."""
        return os.path.join(self.folder, '{}_{}.model'.format(self.network.name, what))

    def __call__(self, trainer):
        self.network.save_model(self.path(trainer.updater.epoch))
        accuracy = float(trainer.observation[ACCURACY])
        if accuracy > self.best:
            self.best = accuracy
            self.network.save_model(self.path('best'))

    def serialize(self, serializer):
        self.best = float(serializer('best', self.best))
