"""Find rows of the demo pool that another row says nearly word for word. Run: python examples/near_duplicates.py

Needs the text extra (pip install 'smartgpu[text]'). Rank once, take the shortest prefix that covers 99 % of the pool,
and list the left-out rows that lie closest to a chosen one.
"""

import numpy as np

import smartgpu
from smartgpu.demo import demo_rows
from smartgpu.embed import embed

rows = demo_rows()[:1000]
texts = [f"{row['instruction']}\n{row['input']}".strip() for row in rows]
X = embed(texts)

selection = smartgpu.select(X, coverage=0.99)
print(f"{selection.k} of {len(rows)} rows cover 99 % of the pool")

audit = selection.assign(X)
left_out = np.setdiff1d(np.arange(len(rows)), selection.indices)
closest = left_out[np.argsort(-audit.similarity[left_out], kind="stable")][:5]
for row in closest:
    print(f"\n{audit.similarity[row]:.3f}  row {row}: {texts[row][:90]!r}")
    print(f"       kept {audit.nearest[row]}: {texts[audit.nearest[row]][:90]!r}")
