"""Models that come from elsewhere as runs, and runs that leave as model folders."""

import dataclasses
from pathlib import Path
from typing import Any

from lmcli import console
from lmcli.artifacts import files, inventory, layout, lock, manifest
from lmcli.artifacts.again import creating, finished
from lmcli.artifacts.manifest import Manifest
from lmcli.config.training import TrainingConfig
from lmcli.config.tuning import TuningConfig
from lmcli.errors import MismatchError, UsageError
from lmcli.interop import card, huggingface
from lmcli.runs.config import RunConfig
from lmcli.runs.start import create
from lmcli.text.sources import fingerprint
from lmcli.text.tokenizer import Tokenizer, write


def import_model(root: Path, folder: Path, name: str, force: bool) -> Manifest:
    """The model of a folder as run `name`, and its tokenizer under the same name."""
    run = layout.new(root, "run", name)
    found = huggingface.read(folder)
    sources = fingerprint(found.sources)
    recorded = {"sources": {"imported": sources}}
    with creating(run, root, "run", force):
        parents = {"tokenizer": _keep_tokenizer(root, name, found.tokenizer, recorded, force)}
        if made := finished(run, "run", recorded, parents):
            console.say(f"run {run.name} is there already, imported from the same files")
            return made
        id_ = files.digest({"files": [source["sha256"] for source in sources]})
        origin = {"name": folder.resolve().name, "id": id_}
        config = RunConfig(found.model, TrainingConfig(), {}, origin)
        create(run, config, found.tokenizer.to_bytes(), parents, found.weights, recorded)
    return manifest.read(run, "run")


def _keep_tokenizer(
    root: Path, name: str, tokenizer: Tokenizer, recorded: dict[str, Any], force: bool
) -> str:
    """The id of the imported tokenizer as an artifact, which may be there already."""
    path, data = layout.new(root, "tokenizer", Path(name).name), tokenizer.to_bytes()
    with creating(path, root, "tokenizer", force):
        if not path.exists():
            write(path, tokenizer, {"algorithm": "imported", **recorded})
        made = manifest.read(path, "tokenizer", hashes=True)
        if (path / layout.TOKENIZER).read_bytes() != data:
            raise MismatchError(
                f"tokenizer {path.name} exists and is another one; choose another --name, or "
                "--force moves the old one to the trash"
            )
        return made.id


def merge_run(root: Path, reference: str, name: str, force: bool) -> Manifest:
    """The best weights of a run, its low-rank updates merged into them, as a run of its own."""
    source, run = layout.find(root, reference, "run"), layout.new(root, "run", name)
    stored = RunConfig.read(source)
    folders, _, id_ = stored.chosen(source, None)
    tuning = TuningConfig(task=stored.tuning.task, template=stored.tuning.template)
    origin = {"name": source.name, "id": id_}
    config = RunConfig(stored.model, TrainingConfig(), {}, origin, tuning)
    made = manifest.read(source, "run", hashes=True)
    parents = {"run": made.id, "tokenizer": made.parents["tokenizer"]}
    with creating(run, root, "run", force):
        if run.exists() and RunConfig.read(run).origin == origin:
            console.say(f"run {run.name} is there already, made from the same weights")
        elif run.exists():
            raise UsageError(f"run {run.name} exists; choose another --name, or use --force")
        else:
            tokenizer = (source / layout.TOKENIZER).read_bytes()
            create(run, config, tokenizer, parents, stored.weights(folders))
    return manifest.read(run, "run")


def export_model(root: Path, reference: str, which: str | None, out: Path) -> dict[str, Any]:
    """A checkpoint of a run as a model folder `out`, whole or not at all."""
    if out.exists():
        raise UsageError(f"--out {out} exists; choose another folder")
    run, _ = manifest.find(root, reference, "run", hashes=True)
    config = RunConfig.read(run)
    folders, state, id_ = config.chosen(run, which)
    tokenizer = Tokenizer.load(run / layout.TOKENIZER)
    made = {"run": run.name, "step": state.step, "checkpoint": id_}
    sources = {"Data": config.data, "Began with the weights of": config.origin}
    data = ". ".join(f"{k}: {v['name']}, id `{v['id']}`" for k, v in sources.items() if v)
    eos, template = tokenizer.token(tokenizer.eos_id), config.tuning.template
    evals = [result for result in inventory.evals(run) if result["checkpoint"]["id"] == id_]
    recipe = dataclasses.asdict(config.model)
    if config.data:
        recipe |= dataclasses.asdict(config.now(run)) | {"budget": None}  # its steps are known
    text = card.text(evals, recipe, template, eos=eos, data=data, **made)
    with (
        lock.hold(layout.creation_lock(out), f"folder {out}", keep=False),
        files.staged_directory(out) as staged,
    ):
        try:
            huggingface.write(staged, config.model, config.weights(folders), tokenizer, text)
        except MismatchError as error:
            raise MismatchError(f"run {run.name} cannot be exported: {error}") from None
    return made | {"out": str(out)}
