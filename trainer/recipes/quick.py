"""``--quick``: a small network on few images, to see everything work in a minute."""

from trainer.recipes import original

RECIPE = original.RECIPE.replace(
    epoch=11,
    batch=50,
    train_batch_divide=1,
    test_batch_divide=1,
    optimizer='torch-nesterov',
    lr=0.1,
    lr_schedule='cosine',
    d=8,
    block_num=(1, 1, 1),
)
