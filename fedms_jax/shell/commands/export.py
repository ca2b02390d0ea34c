"""`fedms export`: models of a workdir, for PEFT and for transformers."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.traverse_util as traverse
import jax
import numpy as np

from fedms_jax.adapters import lora
from fedms_jax.core import reduction, tree
from fedms_jax.core.types import Roles, Tree
from fedms_jax.models import pretrained
from fedms_jax.models.family import Model
from fedms_jax.persistence import (
  files,
  model_export,
  model_files,
  peft,
  peft_names,
)
from fedms_jax.persistence.model_files import Checkpoint
from fedms_jax.persistence.snapshot import Snapshot
from fedms_jax.shell import build, flags, foundation, methods, pipeline
from fedms_jax.shell import world as worlds
from fedms_jax.shell.commands import (
  export_built_in,
  export_heads,
  export_network,
  export_notes,
  export_prompts,
)
from fedms_jax.shell.config import Config
from fedms_jax.systems.units import in_bytes

HEAD, PARTS = export_heads.FILE, 'parts.safetensors'
# What a model of `Algorithm.models` is asked for by.
_ALLOWED = {'global': 'global, merged', 'local': 'client:k, merged:k'}
# What transformers calls them: each step between levels is a label of its own.
_PROBLEMS = {
  'regression': 'regression',
  'multi_label': 'multi_label_classification',
  'ordinal': 'multi_label_classification',
}
# By what task_type PEFT knows a model, where a class of its own can be called
# with the inputs of that model. (With SEQ_CLS it would save all of RoBERTa's
# head; what it has for features takes no images, and no text tower.)
_TASKS = {
  'BertForSequenceClassification': 'SEQ_CLS',
  'GPT2ForSequenceClassification': 'SEQ_CLS',
  'GPT2LMHeadModel': 'CAUSAL_LM',
  'Gemma3TextForSequenceClassification': 'SEQ_CLS',
  'Gemma3ForCausalLM': 'CAUSAL_LM',
  **{
    f'{kind}For{head}': task
    for kind in ('Llama', 'Mistral', 'Qwen2', 'Qwen3', 'Gemma2', 'Phi3')
    for head, task in (
      ('SequenceClassification', 'SEQ_CLS'),
      ('CausalLM', 'CAUSAL_LM'),
    )
  },
}


def run(words: Sequence[str], extra: dict[str, tuple[Any, str]]) -> int:
  """Writes what --what names to the folder --out, and says what it wrote."""
  config, values = flags.parse_for_workdir(words, extra)
  what, out = _what(config, values['what']), values['out']
  if not out:
    raise ValueError('--out is missing. Name the folder to write to.')
  if what.client is not None:
    export_notes.of_client(config)
  if config.model.own:
    _own_format(export_network.parts(config, what.client), out)
    return 0
  checkpoint = foundation.checkpoint(config)
  if checkpoint is None:
    _built_in(config, what, out)
    return 0
  trained = worlds.ahead(config) == 'full'
  if (trained or config.pipeline.phases) and not what.merged:
    how = f'--stages={config.stages}'
    if trained:
      how = f'--pretrain.mode={config.pretrain.mode}'
    raise ValueError(
      f'{how} trained the base model too, so that an adapter to '
      f'{config.model.name} is not what was trained. Use --what=merged.'
    )
  if pathlib.Path(out).resolve() == checkpoint.folder.resolve():
    raise ValueError(f'--out={out} is the base model. Choose another folder.')
  snapshot = Snapshot(config.workdir)
  try:
    models, facts = _models(config, checkpoint, snapshot)
    model, parts = _parts(
      config, models, facts, checkpoint, snapshot, what.client
    )
    parts = export_heads.with_classes(
      model,
      parts,
      lambda: _base(config, model, facts, checkpoint, snapshot),
    )
    if what.merged:
      _merged(config, model, facts, checkpoint, snapshot, parts, out)
    else:
      _adapter(config, model, facts.label_names, checkpoint, parts, out)
  finally:
    snapshot.close()
  return 0


def _built_in(config: Config, what: What, out: str) -> None:
  """Writes of a run of the built-in model, whose shape is the data's: the
  whole model, or arrays of what goes beside it."""
  world = worlds.world(config)
  snapshot = Snapshot(config.workdir)
  facts = foundation.facts(world.data)
  try:
    model, parts = _parts(
      config, (world.first, world.model), facts, None, snapshot, what.client
    )
    if what.merged:
      export_built_in.whole(config, world, snapshot, model, parts, out)
    else:
      _own_format(parts, out)
  finally:
    snapshot.close()


class What(NamedTuple):
  """What is asked for: a whole model, or what goes beside the base; of a
  client, or None: of all."""

  merged: bool
  client: int | None


def _what(config: Config, text: str) -> What:
  kind, _, number = text.partition(':')
  count = config.partition.num_clients
  if text in ('global', 'merged'):
    return What(text == 'merged', None)
  if kind in ('client', 'merged') and number.isdigit() and int(number) < count:
    return What(kind == 'merged', int(number))
  raise ValueError(
    f'--what={text} is nothing to export; allowed: global, merged, client:0 '
    f'to client:{count - 1}, merged:0 to merged:{count - 1}.'
  )


def _models(config: Config, checkpoint: Checkpoint, snapshot: Snapshot):
  """((the first model of the run, its algorithm's), facts), without data."""
  file = snapshot.workdir.facts
  if not file.is_file():
    raise ValueError(f'{file} does not exist yet. Wait for the first round.')
  found = files.read_json(file)
  unit = [tuple(found.get(name, ())) for name in ('center', 'spread')]
  facts = foundation.Facts(tuple(found['label_names']), found['tokens'], *unit)
  model = first = foundation.loadable(config.model, checkpoint, facts)
  if config.first_model != config.model:
    first = foundation.loadable(config.first_model, checkpoint, facts)
  return (first, model), facts


def _parts(
  config, models: tuple[Model, Model], facts, checkpoint, snapshot, client
) -> tuple[Model, Tree]:
  """(the model of the stage that the run is in, what has become of it): see
  `Algorithm.models`."""
  first, model = models
  stages = pipeline.stages(config, first, model, len(facts.label_names))
  tokens = None
  if methods.reads_names(config.algorithm.name, model):
    tokens = foundation.class_tokens(
      config.prompt, facts.label_names, checkpoint
    )
  shapes = worlds.shapes(config.model, first, checkpoint, tokens)
  arrays, plain = snapshot.read(shapes, stages)
  stage = stages[plain['stage']]
  personal = arrays['personal']
  if client is not None and jax.tree.leaves(personal):
    states = snapshot.store(stage.folder, personal).gather(np.array([client]))
    personal = jax.tree.map(lambda x: x[0], states)
  roles = Roles(arrays['frozen'], arrays['shared'], personal)
  # A model may be part of what clients see of the server's memory.
  roles = reduction.broadcast(stage.algorithm, roles, arrays['memory'])
  found = stage.algorithm.models(roles)
  name = 'global' if client is None else 'local'
  if name not in found:
    allowed = ', '.join(_ALLOWED[known] for known in found)
    raise ValueError(
      f'--algorithm.name={config.algorithm.name} has no {name} model in its '
      f'stage {stage.name!r}; allowed: --what={allowed}.'
    )
  base = {}
  if stage.rebased and 'base' in roles.frozen:
    base = {'base': roles.frozen['base']}
  in_phase = plain['stage'] < len(config.pipeline.phases)
  told = config.first_model if in_phase else config.model
  parts = base | found[name]
  if told.head == 'regression':
    parts = _in_units(parts, facts)
  return (first if in_phase else model), parts


def _in_units(parts: Tree, facts: foundation.Facts) -> Tree:
  """Parts whose head gives numbers as the data has them."""
  if not facts.spread or not parts.get('head'):
    return parts
  spread = np.asarray(facts.spread, np.float32)
  head = {k: np.asarray(x) * spread for k, x in parts['head'].items()}
  if 'bias' not in head:
    raise ValueError(
      '--model.head=regression of this model has no bias that the mean of the '
      'data could be added to, so that what is exported would give other '
      'numbers; allowed: families whose heads have one, such as BERT and ViT.'
    )
  head['bias'] = head['bias'] + np.asarray(facts.center, np.float32)
  return parts | {'head': head}


def _adapter(
  config,
  model: Model,
  labels: Sequence[str],
  checkpoint,
  parts: Tree,
  out: str,
) -> None:
  """Writes a PEFT adapter, or what there is instead of one."""
  prompts = export_prompts.written(
    config, model, labels, checkpoint, parts, out, _TASKS.get(model.reference)
  )
  if prompts:
    return
  if not parts.keys() <= {'base', 'blocks', 'head'}:
    _own_format(parts, out)
    return
  _check_lora(config, parts)
  head, known = parts['head'] or None, bool(model.reference)
  kind = checkpoint.config['model_type']
  features = kind not in pretrained.IMAGES and not kind.endswith('text_model')
  peft.save(
    out,
    model,
    parts['blocks'],
    rank=config.lora.rank,
    alpha=config.lora.alpha,
    base=config.model.name,
    modules={name.removesuffix('.weight') for name in checkpoint.tensors},
    task=_TASKS.get(model.reference)
    if known
    else 'FEATURE_EXTRACTION'
    if features
    else None,
    head=head if known else None,
    labels=labels,
    bare=bool(head) and not known,
    frozen=peft_names.frozen_beside(model, checkpoint)
    if head and known
    else None,
  )
  print(f'wrote {peft.CONFIG} and {peft.WEIGHTS} to {out}')
  if head and not known:
    so = f'load the adapter onto {model.featured}'
    export_heads.beside(model, head, labels, out, so)


def _check_lora(config: Config, parts: Tree) -> None:
  """Raises `ValueError` if LoRA is not all that is trained of the base."""
  flat = traverse.flatten_dict(parts.get('blocks', {}), sep='/')
  dense = any(path.endswith('/delta') for path in flat)
  if dense or 'blocks' not in parts:
    what = 'adds dense updates to the kernels' if dense else 'trains no LoRA'
    raise ValueError(
      f'--algorithm.name={config.algorithm.name} {what}, so that there is no '
      'adapter for PEFT. Use --what=merged.'
    )


def _own_format(parts: Tree, out: str) -> None:
  """Writes arrays for which no library has a format, such as a prompt."""
  flat = traverse.flatten_dict(parts, sep='.')
  leaves = {name: np.asarray(x) for name, x in flat.items()}
  folder = pathlib.Path(out)
  folder.mkdir(parents=True, exist_ok=True)
  peft.write_tensors(folder / PARTS, leaves)
  shown = ', '.join(f'{name} {list(x.shape)}' for name, x in leaves.items())
  print(f'wrote {PARTS} to {out}: {shown}')


def _merged(
  config, model: Model, facts, checkpoint, snapshot: Snapshot, parts: Tree, out
) -> None:
  """Writes the whole model with LoRA in its kernels; an int8 run's is merged
  into the weights that were rounded to int8."""
  if own := parts.keys() - {'base', 'blocks', 'head'}:
    raise ValueError(
      f'--algorithm.name={config.algorithm.name} trains '
      f'{", ".join(sorted(own))} beside the model, which no class of '
      'transformers has. Use --what=global or client:k.'
    )
  if config.model.storage == 'int8':
    plain = dataclasses.replace(config.model, storage='float32')
    config = dataclasses.replace(config, model=plain)
    model = foundation.loadable(config.model, checkpoint, facts)
  base = parts.get('base') or _base(config, model, facts, checkpoint, snapshot)
  if 'prefix' in parts.get('blocks', {}).get('attn', {}):
    raise ValueError(
      f'--algorithm.name={config.algorithm.name} trains keys and values beside '
      'the model, which no class of transformers has. Use --what=global.'
    )
  if 'blocks' in parts:
    scale = build.lora_spec(config.lora).scale
    merged = lora.merge(base['blocks'], parts['blocks'], scale)
    base = base | {'blocks': merged}
  head, labels = parts['head'] or None, facts.label_names
  known = bool(model.reference)
  model_export.save(
    model,
    base,
    out,
    checkpoint,
    head=head if known else None,
    labels=labels,
    problem=_PROBLEMS.get(config.model.head, ''),
  )
  size = in_bytes(tree.nbytes(base))
  print(f'wrote {model_files.WEIGHTS} and config.json to {out}, {size}')
  if head and not known:
    so = f'load the model as {model.featured}'
    export_heads.beside(model, head, labels, out, so)


def _base(config, model: Model, facts, checkpoint, snapshot) -> Tree:
  """The base model of the run: as loaded, or as its server trained it."""
  backbone, key = model.backbone, jax.random.key(0)
  if worlds.ahead(config) == 'full':
    shapes = {
      'base': jax.eval_shape(backbone.init, key),
      'head': jax.eval_shape(backbone.init_head, key),
    }
    return snapshot.pretrained(shapes, dict)['base']
  names = facts.label_names
  return foundation.load(
    config.model, config.data, model, names, checkpoint, key
  )[0]
