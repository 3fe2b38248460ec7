"""What Active fooling can reach on the default suite: were each map exactly that of the other class, would it count?

python examples/active_fooling.py             # the rate of perfect swaps, a line for each model and interpreter
python examples/active_fooling.py 600         # and the FSR of distilled fine-tuning of so many steps, on train and test
"""

import sys

import torch

from attacks import Active, Recipe, manipulate
from attacks.ranks import rank_correlation
from benchmark import datasets, suite
from benchmark.entries.scoring import heatmaps
from benchmark.entries.trained import clean_model
from benchmark.run import Run, create_interpreter, dataset


@torch.no_grad()
def rates(run, clean, fooled, interpreter, split):
    """Of 64 two-object images: the FSR, were the maps swapped, and that of the fooled model; the clean maps' likeness;
    the share with both objects among the two highest logits."""
    images, targets = next(iter(datasets.loader(dataset(run, split, True), 64)))
    before, after = (heatmaps(interpreter, model, images, targets) for model in (clean, fooled))
    swapped, reached = (Active().success(Active().test_loss(maps, before)) for maps in (before.flip(1), after))
    both = (clean(images).topk(2).indices.sort(1).values == targets.sort(1).values).all(1)
    alike = rank_correlation(before[:, 0], before[:, 1]).nanmedian()
    return [float(value.float().mean()) for value in (swapped, reached, alike, both)]


def main(steps=0):
    run = Run(suite.load("default"), ".foolbench")
    torch.set_num_threads(run.suite.threads)
    for name in run.suite.models:
        clean = clean_model(run, name)
        for attacked in run.suite.attacked:
            interpreter, fooled = create_interpreter(run, attacked), clean
            if steps:
                plain, pairs = (
                    datasets.loader(dataset(run, "train", two), 32, shuffle=True, seed=0) for two in (False, True)
                )
                recipe = Recipe(1e-3, 10.0, steps, divergence=0.1)
                fooled = manipulate(clean, interpreter, Active(), plain, recipe, fooling_loader=pairs).model
            swapped, reached, alike, both = rates(run, clean, fooled, interpreter, "test")
            train = rates(run, clean, fooled, interpreter, "train")[1]
            print(
                f"{name:17} {attacked:14} perfect swap {swapped:.2f}, reached {reached:.2f} (train {train:.2f}), "
                f"rank correlation of the two clean maps {alike:.2f}, both objects seen {both:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
