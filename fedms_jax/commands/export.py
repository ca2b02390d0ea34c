"""`fedms export`: models of a workdir, for PEFT and for transformers."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fedms_jax import catalog, flags, foundation, origin, tree
from fedms_jax.adapters import lora, peft
from fedms_jax.algorithms import fedms
from fedms_jax.base import Tree
from fedms_jax.config import Config
from fedms_jax.models import checkpoints
from fedms_jax.models.checkpoints import Checkpoint
from fedms_jax.models.family import Model
from fedms_jax.simulation.report import in_bytes
from fedms_jax.simulation.snapshot import Snapshot

HEAD = 'head.safetensors'
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
  what, out = values['what'], values['out']
  client = _client(config, what)
  if not out:
    raise ValueError('--out is missing. Name the folder to write to.')
  checkpoint = foundation.find(config)
  if checkpoint is None:
    raise ValueError(
      f'--model.name={config.model.name} is built in, and no other library '
      'knows its format; allowed: runs of a loaded checkpoint.'
    )
  if what != 'merged' and origin.pretrain_mode(config) == 'full':
    raise ValueError(
      '--pretrain.mode=full trained the base model too, so that an adapter to '
      f'{config.model.name} is not what was trained. Use --what=merged.'
    )
  if pathlib.Path(out).resolve() == checkpoint.folder.resolve():
    raise ValueError(f'--out={out} is the base model. Choose another folder.')
  snapshot = Snapshot(config.workdir)
  try:
    model, facts = _model(config, checkpoint, snapshot)
    expert = _expert(config, model, facts, snapshot, client)
    if what == 'merged':
      _merged(config, model, facts, checkpoint, snapshot, expert, out)
    else:
      _adapter(config, model, checkpoint, expert, out)
  finally:
    snapshot.close()
  return 0


def _client(config: Config, what: str) -> int | None:
  """The client that is asked for, None for the global expert."""
  kind, _, number = what.partition(':')
  count = config.partition.num_clients
  if what in ('global', 'merged'):
    return None
  if kind == 'client' and number.isdigit() and int(number) < count:
    return int(number)
  raise ValueError(
    f'--what={what} is nothing to export; allowed: global, merged, client:0 '
    f'to client:{count - 1}.'
  )


def _model(config: Config, checkpoint: Checkpoint, snapshot: Snapshot):
  """The run's model, without its data."""
  file = snapshot.workdir.facts
  if not file.is_file():
    raise ValueError(f'{file} does not exist yet. Wait for the first round.')
  found = json.loads(file.read_text(encoding='utf-8'))
  facts = foundation.Facts(tuple(found['label_names']), found['tokens'])
  return foundation.loadable(config, checkpoint, facts), facts


def _expert(config, model: Model, facts, snapshot: Snapshot, client) -> Tree:
  """{'blocks', 'head'} of the global expert, or of a client's local one."""
  stages = catalog.stages(config, model, len(facts.label_names))
  key, backbone = jax.random.key(0), model.backbone
  shapes = jax.eval_shape(
    lambda k: fedms.start(backbone.init(k), backbone.init_head(k)), key
  )
  arrays, plain = snapshot.read(shapes, stages)
  name = stages[plain['stage']].name
  if client is None:
    shared = arrays['frozen'].get('global', arrays['shared'])
    return _whole(arrays['frozen'], shared, config)
  if not jax.tree.leaves(arrays['personal']):
    raise ValueError(
      f'the run is in its stage {name!r}, in which clients have no expert of '
      'their own. Export --what=global, or wait for the personal stage.'
    )
  states = snapshot.store(name, arrays['personal']).gather(np.array([client]))
  expert = jax.tree.map(lambda x: x[0], states)
  if 'gate' not in arrays['shared'] | expert:
    return _whole(arrays['frozen'], arrays['shared'] | expert, config)
  uploaded = arrays['shared'].get('blocks')
  if uploaded is not None:
    limit = fedms.uploaded(backbone.blocks, config.algorithm.upload_blocks)
    expert['blocks'] = jax.tree.map(
      lambda s, p: np.concatenate([s[:limit], p[limit:]]),
      uploaded,
      expert['blocks'],
    )
  return expert


def _whole(frozen: Tree, trained: Tree, config) -> Tree:
  """{'blocks', 'head'} of a model of which this has been trained."""
  both = {key: frozen['start'][key] for key in ('blocks', 'head')} | trained
  if set(both) != {'blocks', 'head'} or 'delta_blocks' in frozen:
    raise ValueError(
      f'--algorithm.name={config.algorithm.name} keeps its LoRA in a form that '
      'no adapter of PEFT has. Export a run of another method.'
    )
  return {'blocks': both['blocks'], 'head': both['head']}


def _adapter(config, model: Model, checkpoint, expert: Tree, out: str) -> None:
  """Writes the expert as a PEFT adapter."""
  kind, head = checkpoint.config['model_type'], expert['head'] or None
  task, known = {'causal_lm': 'CAUSAL_LM'}.get(config.model.head), False
  if head:
    poolings, task = _CLASSIFIERS.get(kind, ((), None))
    known = config.model.pooling in poolings
  peft.save(
    out,
    model,
    expert['blocks'],
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


def _merged(
  config, model: Model, facts, checkpoint, snapshot: Snapshot, expert, out
) -> None:
  """Writes the whole model with the expert in its kernels; an int8 run's is
  merged into the weights that were rounded to int8."""
  if config.model.storage == 'int8':
    plain = dataclasses.replace(config.model, storage='float32')
    config = dataclasses.replace(config, model=plain)
    model = foundation.loadable(config, checkpoint, facts)
  base = _base(config, model, facts, checkpoint, snapshot)
  blocks = lora.merge(
    base['blocks'], expert['blocks'], model.backbone.lora_scale
  )
  checkpoints.save(
    model,
    base | {'blocks': blocks},
    out,
    checkpoint,
    head=expert['head'] or None,
    labels=facts.label_names if expert['head'] else (),
  )
  size = in_bytes(tree.nbytes(base))
  print(f'wrote {checkpoints.WEIGHTS} and config.json to {out}, {size}')


def _base(config, model: Model, facts, checkpoint, snapshot) -> Tree:
  """The base model of the run: as loaded, or as its server trained it."""
  backbone, key = model.backbone, jax.random.key(0)
  if origin.pretrain_mode(config) == 'full':
    shapes = {
      'base': jax.eval_shape(backbone.init, key),
      'head': jax.eval_shape(backbone.init_head, key),
    }
    return snapshot.pretrained(shapes, dict)['base']
  names = facts.label_names
  return foundation.load(config, model, names, checkpoint, key)[0]
