"""``--quick``: a small network on few images, to see everything work in two minutes."""

from trainer.recipes import original

RECIPE = original.RECIPE.replace(
    epoch=6, batch=20, train_batch_divide=1, lr=0.05, lr_steps=(4, 5), d=8, block_num=(1, 1, 1)
)
