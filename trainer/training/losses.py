"""What training minimises, beside plain softmax cross entropy."""

import chainer.functions as F


class LabelSmoothing:
    """Softmax cross entropy against labels of which a share is spread over all classes.

    The target of K classes is 1 - share + share / K at the label and share / K elsewhere
    (arXiv 1512.00567; ``torch.nn.CrossEntropyLoss(label_smoothing=share)``).

    Args:
        share (float): 0..1.
    """

    def __init__(self, share):
        self.share = share

    def __call__(self, y, t):
        """Return the mean loss of scores (batch, classes), float32, and labels int32 (batch,)."""
        xp, classes = y.xp, y.shape[1]
        target = (t[:, None] == xp.arange(classes)) * (1 - self.share) + self.share / classes
        target = target.astype(y.dtype)
        return F.softmax_cross_entropy(y, target)
