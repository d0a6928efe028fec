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
print(generate({prompt}, do_sample=True, max_new_tokens=50)[0]["generated_text"])
```

{pairs}Documents follow one `{eos}` in training, so the model expects one before a prompt. The
tokenizer puts it there by itself (`add_special_tokens`, on by default); `max_length` counts it as a
token.

{data}. Checkpoint: `{checkpoint}`.

## Scores

{scores}

## Recipe

Model and training, as in the run's config.json. Where the weights began at random, it is what
`lmcli train --config` takes.

```toml
{recipe}
```
"""


PAIRS = """It learned pairs: a prompt is a source within the template `{}`, and what it writes is
the target.

"""


def text(
    evals: Sequence[dict[str, Any]], recipe: dict[str, Any], template: str | None, **facts: Any
) -> str:
    """`evals` are results of the exported checkpoint, of a run whose pairs were read through a
    `template`; `facts` fill in the rest of the card."""
    prompt = (template or "{source}").removesuffix("\n").removesuffix("{target}")
    table = ["| score | value | data | how |", "| --- | --- | --- | --- |"]
    for result in evals:
        data = f"{result['dataset']['name']}/{result['dataset']['split']}"
        for score in result["scores"]:
            name, value, how = score["name"], score["value"], score["signature"]
            table.append(f"| {name} | {value:.6g} | {data} | `{how}` |")
    return CARD.format(
        version=__version__,
        prompt=json.dumps(prompt.replace("{source}", "The quick brown fox"), ensure_ascii=False),
        pairs=PAIRS.format(json.dumps(template, ensure_ascii=False)) if template else "",
        scores="\n".join(table) if evals else "None yet.",
        recipe="\n".join(
            f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in recipe.items() if v is not None
        ),
        **facts,
    )
