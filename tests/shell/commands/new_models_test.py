"""Models that began with random weights are what transformers loads: with our
tokens, and our perplexity."""

import json

import numpy as np
import pytest

from fedms_jax.shell import flags, main
from fedms_jax.shell import world as worlds
from tests import folders

torch = pytest.importorskip('torch', reason='parity needs torch')
transformers = pytest.importorskip('transformers', reason='parity')

SMALL = (
  '--data.train_split=test', '--data.input_column=text',
  '--data.max_tokens=24', '--partition.num_clients=4',
  '--partition.unseen_clients=1', '--partition.min_rows=5',
  '--partition.name=iid', '--cohort.size=2', '--model.blocks=2',
  '--model.width=16', '--model.heads=2', '--client.steps=2',
  '--pretrain.batch_size=8', '--stages=S2,F2x2', '--noprogress',
  '--notensorboard', '--model.tokenizer=bpe', '--model.vocabulary=300',
)  # fmt: skip
KINDS = {
  'gpt': ('GPT2LMHeadModel', 'causal_lm'),
  'llama': ('LlamaForCausalLM', 'causal_lm'),
  'bert': ('BertForMaskedLM', 'masked_lm'),
}


def their_loss(model, inputs, targets, shift: bool) -> float:
  """The mean of the losses of all tokens, one row at a time."""
  total, count = 0.0, 0
  for row, wanted in zip(inputs, targets, strict=True):
    real = row >= 0
    ids = torch.tensor(row[real].astype(np.int64))[None]
    labels = torch.tensor(np.where(wanted < 0, -100, wanted)[real])
    with torch.no_grad():
      logits = model(input_ids=ids).logits[0].float()
    labels = labels.to(torch.int64)
    if shift:
      logits, labels = logits[:-1], labels[1:]
    total += float(
      torch.nn.functional.cross_entropy(
        logits, labels, ignore_index=-100, reduction='sum'
      )
    )
    count += int((labels != -100).sum())
  return total / count


@pytest.mark.parametrize('name', KINDS)
def test_transformers_gives_our_perplexity(name, tmp_path):
  kind, head = KINDS[name]
  texts = folders.texts(tmp_path / 'texts', 60)
  words = [
    *SMALL, f'--data.source={texts}', f'--model.name={name}',
    f'--model.head={head}', f'--workdir={tmp_path}/run',
  ]  # fmt: skip
  assert main.main(['fedms', *words]) == 0
  out = tmp_path / 'out'
  export = ['fedms', 'export', *words, '--what=merged', f'--out={out}']
  assert main.main(export) == 0
  theirs, info = getattr(transformers, kind).from_pretrained(
    out, output_loading_info=True
  )
  assert not info['missing_keys'] and not info['unexpected_keys']
  home = worlds.world(flags.parse(['fedms', *words]))
  data = home.data
  inputs = data.table.columns['inputs'][data.pooled]
  targets = data.table.columns.get('targets', data.table.columns['inputs'])
  loss = their_loss(
    theirs.eval(), inputs, targets[data.pooled], head == 'causal_lm'
  )
  found = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  (scores,) = found['models'].values()
  assert scores['pooled_loss'] == pytest.approx(loss, rel=1e-4)
  tokenizer = transformers.AutoTokenizer.from_pretrained(out)
  for text in ('ball goal team', 'naïve ☃'):
    import tokenizers

    plain = tokenizers.Tokenizer.from_file(str(out / 'tokenizer.json'))
    assert tokenizer(text)['input_ids'] == plain.encode(text).ids
    spoken = tokenizer.decode(tokenizer(text)['input_ids'],
                              skip_special_tokens=True)  # fmt: skip
    assert spoken == text
