"""`fedms export`: models of a workdir, for PEFT and for transformers."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.traverse_util as traverse
import jax
import numpy as np

from fedms_jax.adapters import lora
from fedms_jax.core import tree
from fedms_jax.core.types import Roles, Tree
from fedms_jax.models.family import Model
from fedms_jax.persistence import model_files, peft
from fedms_jax.persistence.model_files import Checkpoint
from fedms_jax.persistence.snapshot import Snapshot
from fedms_jax.shell import flags, foundation, methods
from fedms_jax.shell import world as worlds
from fedms_jax.shell.config import Config
from fedms_jax.systems.units import in_bytes

HEAD, PARTS = 'head.safetensors', 'parts.safetensors'
# What a model of `Algorithm.models` is asked for by.
_ALLOWED = {'global': 'global, merged', 'local': 'client:k, merged:k'}
# The --model.pooling of which transformers has a class with a linear layer,
# and the task_type by which PEFT knows it. (With that type, PEFT would save
# both layers of RoBERTa's head.)
_CLASSIFIERS = {
  'bert': (('pooler',), 'SEQ_CLS'),
  'roberta': (('pooler',), None),
  'xlm-roberta': (('pooler',), None),
  'vit': (('', 'cls'), None),
  'deit': (('', 'cls'), None),
  'gpt2': (('', 'last'), 'SEQ_CLS'),
  'llama': (('', 'last'), 'SEQ_CLS'),
}


def run(words: Sequence[str], extra: dict[str, tuple[Any, str]]) -> int:
  """Writes what --what names to the folder --out, and says what it wrote."""
  config, values = flags.parse_for_workdir(words, extra)
  what, out = _what(config, values['what']), values['out']
  if not out:
    raise ValueError('--out is missing. Name the folder to write to.')
  checkpoint = foundation.find(config)
  if checkpoint is None:
    raise ValueError(
      f'--model.name={config.model.name} is built in, and no other library '
      'knows its format; allowed: runs of a loaded checkpoint.'
    )
  if not what.merged and worlds.pretrain_mode(config) == 'full':
    raise ValueError(
      '--pretrain.mode=full trained the base model too, so that an adapter to '
      f'{config.model.name} is not what was trained. Use --what=merged.'
    )
  if pathlib.Path(out).resolve() == checkpoint.folder.resolve():
    raise ValueError(f'--out={out} is the base model. Choose another folder.')
  snapshot = Snapshot(config.workdir)
  try:
    model, facts = _model(config, checkpoint, snapshot)
    parts = _parts(config, model, facts, checkpoint, snapshot, what.client)
    if what.merged:
      _merged(config, model, facts, checkpoint, snapshot, parts, out)
    else:
      _adapter(config, model, checkpoint, parts, out)
  finally:
    snapshot.close()
  return 0


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


def _model(config: Config, checkpoint: Checkpoint, snapshot: Snapshot):
  """The run's model, without its data."""
  file = snapshot.workdir.facts
  if not file.is_file():
    raise ValueError(f'{file} does not exist yet. Wait for the first round.')
  found = json.loads(file.read_text(encoding='utf-8'))
  facts = foundation.Facts(tuple(found['label_names']), found['tokens'])
  return foundation.loadable(config, checkpoint, facts), facts


def _parts(
  config, model: Model, facts, checkpoint, snapshot: Snapshot, client
) -> Tree:
  """What the run has made of its model, see `Algorithm.models`."""
  stages = methods.stages(config, model, len(facts.label_names))
  tokens = None
  if methods.reads_names(config, model):
    tokens = foundation.class_tokens(config, facts.label_names, checkpoint)
  shapes = worlds.shapes(config, model, checkpoint, tokens)
  arrays, plain = snapshot.read(shapes, stages)
  stage = stages[plain['stage']]
  personal = arrays['personal']
  if client is not None and jax.tree.leaves(personal):
    states = snapshot.store(stage.name, personal).gather(np.array([client]))
    personal = jax.tree.map(lambda x: x[0], states)
  roles = Roles(arrays['frozen'], arrays['shared'], personal)
  models = stage.algorithm.models(roles)
  name = 'global' if client is None else 'local'
  if name not in models:
    allowed = ', '.join(_ALLOWED[found] for found in models)
    raise ValueError(
      f'--algorithm.name={config.algorithm.name} has no {name} model in its '
      f'stage {stage.name!r}; allowed: --what={allowed}.'
    )
  return models[name]


def _adapter(config, model: Model, checkpoint, parts: Tree, out: str) -> None:
  """Writes a PEFT adapter, or what there is instead of one."""
  if not parts.keys() <= {'base', 'blocks', 'head'}:
    _own_format(parts, out)
    return
  _check_lora(config, parts)
  kind, head = checkpoint.config['model_type'], parts['head'] or None
  task, known = {'causal_lm': 'CAUSAL_LM'}.get(config.model.head), False
  if head:
    poolings, task = _CLASSIFIERS.get(kind, ((), None))
    known = config.model.pooling in poolings
  peft.save(
    out,
    model,
    parts['blocks'],
    rank=config.lora.rank,
    alpha=config.lora.alpha,
    base=config.model.name,
    modules={name.removesuffix('.weight') for name in checkpoint.tensors},
    task=task if known or not head else 'FEATURE_EXTRACTION',
    head=head if known else None,
    bare=bool(head) and not known,
  )
  print(f'wrote {peft.CONFIG} and {peft.WEIGHTS} to {out}')
  if head and not known:
    leaves = {'weight': np.asarray(head['kernel']).T}
    leaves |= {k: np.asarray(v) for k, v in head.items() if k == 'bias'}
    peft.write_tensors(pathlib.Path(out) / HEAD, leaves)
    print(
      f'wrote the head to {HEAD}: no class of transformers has a linear layer '
      'on this feature, so load the adapter onto AutoModel'
    )


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
    model = foundation.loadable(config, checkpoint, facts)
  base = parts.get('base') or _base(config, model, facts, checkpoint, snapshot)
  if 'blocks' in parts:
    scale = model.backbone.lora_scale
    merged = lora.merge(base['blocks'], parts['blocks'], scale)
    base = base | {'blocks': merged}
  model_files.save(
    model,
    base,
    out,
    checkpoint,
    head=parts['head'] or None,
    labels=facts.label_names if parts['head'] else (),
  )
  size = in_bytes(tree.nbytes(base))
  print(f'wrote {model_files.WEIGHTS} and config.json to {out}, {size}')


def _base(config, model: Model, facts, checkpoint, snapshot) -> Tree:
  """The base model of the run: as loaded, or as its server trained it."""
  backbone, key = model.backbone, jax.random.key(0)
  if worlds.pretrain_mode(config) == 'full':
    shapes = {
      'base': jax.eval_shape(backbone.init, key),
      'head': jax.eval_shape(backbone.init_head, key),
    }
    return snapshot.pretrained(shapes, dict)['base']
  names = facts.label_names
  return foundation.load(config, model, names, checkpoint, key)[0]
