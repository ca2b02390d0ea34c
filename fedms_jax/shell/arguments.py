"""What the arguments of the library are called on the command line.

Below the shell nobody knows flags: a message names arguments, in backticks, as
a caller in Python writes them: "Lower `num_clients`.", "`Spec.rank`=5 does not
fit". A field of a value has the name of its type in front. Here, and nowhere
else, they become flags.
"""

from __future__ import annotations

import re

# Arguments that are called as their flags are, by the section of these.
_ALIKE = {
  '': ('break_lock', 'loggers', 'resume', 'seed', 'workdir'),
  'data': (
    'concept_groups',
    'group_column',
    'image_size',
    'input_column',
    'label_column',
    'max_tokens',
    'novel_classes',
    'novel_fraction',
    'public_classes',
    'public_fraction',
    'public_shift',
    'revision',
    'shift',
    'shift_groups',
    'source',
    'subset',
    'target_column',
    'test_split',
    'train_split',
  ),
  'partition': (
    'alpha',
    'classes_per_client',
    'load',
    'min_rows',
    'num_clients',
    'save',
    'sigma',
    'unseen_clients',
  ),
  'schedule': ('depths',),
  'eval': ('table',),
  'distributed': ('coordinator', 'process_id', 'processes'),
}
FLAGS = {
  name: f'{section}.{name}' if section else name
  for section, names in _ALIKE.items()
  for name in names
} | {
  'Choice.ends': 'fedot.ends',
  'Code.entropy': 'compression.entropy',
  'Code.name': 'compression.up',
  'Scenario.count': 'tasks.count',
  'Scenario.kind': 'tasks.name',
  'Tasks.method': 'tasks.method',
  'domain_column': 'tasks.column',
  'depth': 'encrypted',
  'encode_text': 'model.name',
  'most': 'ffdapt.most',
  'learning_rate': 'client.learning_rate',
  'size': 'cohort.size',
  'cap': 'cohort.cap',
  'row_cap': 'privacy.batch_cap',
  'Attack.kind': 'attack.update',
  'Poison.kind': 'attack.data',
  'Poison.size': 'attack.trigger',
  'Poison.target': 'attack.target',
  'Poison.token': 'attack.token',
  'groups': 'cohort.groups',
  'sampling': 'cohort.sampling',
  'head': 'model.head',
  'accountant': 'privacy.accountant',
  'delta': 'privacy.delta',
  'target': 'privacy.epsilon',
  'reference': 'time.reference_gflops',
  'late': 'time.late',
  'templates': 'model.templates',
  'Adaptation.epochs': 'eval.adapt',
  'Options.batch_size': 'client.batch_size',
  'Options.budget': 'columns.budget_mb',
  'Options.chunk': 'engine.chunk',
  'Options.head': 'model.head',
  'Options.keep_head': 'model.keep_head',
  'Options.host_budget': 'columns.host_budget_mb',
  'Options.on_nan': 'on_nan',
  'Options.pooling': 'model.pooling',
  'Options.scope': 'columns.scope',
  'Options.storage': 'model.storage',
  'Options.tower': 'model.tower',
  'Options.validation_rows': 'eval.validation_rows',
  'Personal.local_loss': 'fedms.local_loss',
  'Personal.rows': 'gate.rows',
  'Secure.bits': 'secagg.bits',
  'Secure.modulus': 'secagg.modulus',
  'Secure.most': 'cohort.size',
  'Secure.survivors': 'secagg.survivors',
  'Secure.threshold': 'secagg.threshold',
  'Prefix': 'prefix.length',
  'canaries': 'canaries',
  'guesses': 'canaries',
  'right': 'canaries',
  'Estimator.directions': 'mezo.directions',
  'Estimator.kind': 'mezo.kind',
  'Estimator.step': 'mezo.step',
  'Bottleneck.targets': 'feddat.targets',
  'Personal.tower': 'gate.tower',
  'Personal.upload': 'fedms.upload_blocks',
  'Placement.devices': 'engine.devices',
  'Placement.model': 'engine.model_axis',
  'Scope.clients': 'eval.clients',
  'Scope.mixed': 'eval.mixed',
  'Spec.alpha': 'lora.alpha',
  'Spec.rank': 'lora.rank',
  'Spec.targets': 'lora.targets',
  'TransformerConfig.dtype': 'model.dtype',
  'TransformerConfig.heads': 'model.heads',
  'TransformerConfig.remat': 'model.remat',
  'TransformerConfig.width': 'model.width',
  'VitConfig.image': 'data.image_size',
  'VitConfig.patch': 'model.patch',
}
QUOTED = re.compile(r'`([A-Za-z_][\w.]*)`')


def in_flags(message: object) -> str:
  """The message in the words of the command line."""

  def flag(match: re.Match) -> str:
    name = FLAGS.get(match[1])
    return match[0] if name is None else f'--{name}'

  return QUOTED.sub(flag, str(message))
