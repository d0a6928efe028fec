"""The model card of an exported folder: what it is, how it was made, how it is prompted."""

import json
from collections.abc import Sequence
from typing import Any

from lmcli import __version__

CARD = """---
library_name: transformers
pipeline_tag: text-generation
# license: yours to choose, e.g. mit
---

# {run}

A language model exported at step {step} by lmcli {version}. License: not chosen yet.

```python
from transformers import pipeline

generate = pipeline("text-generation", model=".")
print(generate("The quick brown fox", do_sample=True, max_new_tokens=50)[0]["generated_text"])
```

Documents follow one `{eos}` in training, so the model expects one before a prompt. The tokenizer
puts it there by itself (`add_special_tokens`, on by default); `max_length` counts it as a token.

Data: {data}. Checkpoint: `{checkpoint}`.

## Scores

{scores}

## Recipe

For `lmcli train --config`:

```toml
{recipe}
```
"""


def text(evals: Sequence[dict[str, Any]], recipe: dict[str, Any], **facts: Any) -> str:
    """`evals` are results of the exported checkpoint; `facts` fill in the rest of the card."""
    table = ["| score | value | data | how |", "| --- | --- | --- | --- |"]
    for result in evals:
        data = f"{result['dataset']['name']}/{result['dataset']['split']}"
        for score in result["scores"]:
            name, value, how = score["name"], score["value"], score["signature"]
            table.append(f"| {name} | {value:.6g} | {data} | `{how}` |")
    return CARD.format(
        version=__version__,
        scores="\n".join(table) if evals else "None yet.",
        recipe="\n".join(
            f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in recipe.items() if v is not None
        ),
        **facts,
    )
