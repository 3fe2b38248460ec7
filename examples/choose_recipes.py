"""Try recipes on the dev split of the default suite: FSR of the attacked interpreter and top-1 drop, a line each.

python examples/choose_recipes.py location 1e-3 10 150 32 0.05  # fooling, learning rate, lambda, steps, batch
                                                             # and, to distil, the divergence
"""

import sys

import torch

from attacks import Recipe, foolings, manipulate
from benchmark import datasets, suite
from benchmark.entries.scoring import heatmaps
from benchmark.entries.trained import clean_model
from benchmark.run import Run, create_interpreter, dataset


@torch.no_grad()
def scores(run, model, fooled, fooling, interpreter):
    """(FSR, top-1 drop in points) on the first 256 dev images, or 64 two-object ones."""
    pairs = datasets.loader(dataset(run, "dev", fooling.pairs), 64 if fooling.pairs else 256)
    images, targets = next(iter(pairs))
    maps = [heatmaps(interpreter, m, images, targets) for m in (fooled, model)]
    fsr = fooling.success(fooling.test_loss(*maps)).float().mean().item()
    images, targets = next(iter(datasets.loader(dataset(run, "dev"), 512)))
    before, after = ((m(images).argmax(1) == targets).float().mean().item() for m in (model, fooled))
    return fsr, 100 * (before - after)


def main(name, learning_rate, weight, steps, size, divergence=None):
    run = Run(suite.load("default"), ".foolbench")
    torch.set_num_threads(run.suite.threads)
    fooling = foolings.create(name)
    for model_name in run.suite.models:
        model = clean_model(run, model_name)
        for attacked in run.suite.attacked:
            loaders = [
                datasets.loader(dataset(run, "train", pairs), size, shuffle=True, seed=0)
                for pairs in ([False, True] if fooling.pairs else [False])
            ]
            recipe = Recipe(learning_rate, weight, steps, size, divergence)
            interpreter = create_interpreter(run, attacked)
            result = manipulate(model, interpreter, fooling, loaders[0], recipe, fooling_loader=loaders[-1])
            fsr, drop = scores(run, model, result.model, fooling, interpreter)
            print(
                f"{model_name:17} {name} {attacked:14} {recipe} FSR {fsr:.2f}, top-1 drop {drop:.1f} points", flush=True
            )


if __name__ == "__main__":
    main(
        sys.argv[1],
        float(sys.argv[2]),
        float(sys.argv[3]),
        int(sys.argv[4]),
        int(sys.argv[5]),
        *map(float, sys.argv[6:]),
    )
