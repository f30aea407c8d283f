"""One update from one batch, in chunks."""
import chainer
import numpy as np

from trainer.datasets import loading
from trainer.training import processes


class ChunkedUpdater(chainer.training.updaters.StandardUpdater):
    """Chainer's updater with the original's gradient accumulation.

    A batch is computed in chunks: batch normalisation sees one chunk at a time
    and updates its running statistics at each; the gradients of the mean loss
    over the batch are added up, then the optimizer updates once. Of several processes
    each computes its share of the batch; the gradients are those of all of it.

    Args:
        iterator (chainer.dataset.Iterator): From :func:`trainer.datasets.loading.iterator`.
        optimizer (chainer.Optimizer): Its target is a network.
        device (chainer.backend.Device): Where to compute.
        divide (int): Number of chunks (``train_batch_divide``) of this process's share.
        loss (callable): Mean loss from scores and labels; ``None``: the network's.
        group (trainer.training.processes.Alone): The processes.
    """

    def __init__(self, iterator, optimizer, device, divide=1, loss=None,
                 group=processes.Alone()):
        super().__init__(iterator, optimizer, device=device)
        self.group = group
        self.divide = divide
        self.loss = loss or optimizer.target.calc_loss

    def update_core(self):
        iterator = self.get_iterator('main')
        x, t = loading.join(self.group.together(
            iterator.next, undo=getattr(iterator, 'step_back', None)), copy=False)
        self.update_with(x, t)

    def update_with(self, x, t):
        """Update from a batch: x (batch, 3, height, width) and t int32 (batch,), NumPy arrays.

        Of several processes each gives its share, which may be empty. Reports
        ``main/loss``, the mean loss over the whole batch, and ``main/accuracy``, weighted
        by the number of pictures.
        """
        optimizer = self.get_optimizer('main')
        network = optimizer.target
        network.cleargrads()
        loss_sum = correct = 0
        pictures = round(*self.group.sum(len(t)))
        chunks = min(self.divide, len(t))
        for x_chunk, t_chunk in zip(np.array_split(x, chunks), np.array_split(t, chunks)
                                    ) if chunks else ():
            t_chunk = self.device.send(t_chunk)
            y = network(chainer.Variable(self.device.send(x_chunk)))
            loss = self.loss(y, t_chunk)
            # Times the processes: their gradients are averaged.
            (loss * (len(t_chunk) / pictures * self.group.size)).backward(
                loss_scale=optimizer._loss_scale)
            loss_sum += float(loss.array) * len(t_chunk)
            correct += int((y.array.argmax(axis=1) == t_chunk).sum())
            loss.unchain_backward()
        self.group.mean_gradients(network)
        optimizer.update()
        loss_sum, correct = self.group.sum(loss_sum, correct)
        chainer.report({'loss': (loss_sum / pictures, pictures),
                        'accuracy': (correct / pictures, pictures)}, network)
