"""Choose 100 rows of 2,000 made-up embeddings, and look at what they stand for. Run: python examples/quickstart.py"""

import numpy as np

import smartgpu

rng = np.random.default_rng(0)
topics = rng.normal(size=(40, 64))
sizes = rng.geometric(0.03, size=2000) % 40  # a few large topics, many small ones
X = topics[sizes] + 0.4 * rng.normal(size=(2000, 64))

selection = smartgpu.select(X, k=100)
print(selection)

# Any smaller budget is a prefix of the same order.
small = selection.prefix(40)
print(f"\nthe first 40 picks hold {len(set(sizes[small.indices]))} of 40 topics")

# What every chosen row stands for: training weights, or a hint at near duplicates.
audit = selection.assign(X)
most = audit.weight.argmax()
print(
    f"row {selection.indices[most]} stands for {audit.weight[most]} rows; all weights add up to {audit.weight.sum()}"
)

# How good is a set of rows, from any tool?
drawn = rng.choice(len(X), 100, replace=False)
for name, rows in (("greedy", selection.indices), ("random", drawn)):
    score = smartgpu.evaluate(X, rows)
    print(
        f"{name}: coverage {score.coverage:.1%}, f(S) {score.value:.1f}, no 100 rows reach {score.bound:.1f}"
    )
