"""Every export of every family and head is what transformers and PEFT load."""

from __future__ import annotations

import json
from typing import NamedTuple

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from fedms_jax.adapters import lora
from fedms_jax.models import pretrained
from fedms_jax.models.family import Options
from fedms_jax.persistence import model_files, peft, peft_names
from fedms_jax.shell import config as config_lib
from fedms_jax.shell import foundation
from fedms_jax.shell.commands import export
from tests.models import references

torch = pytest.importorskip('torch', reason='parity needs torch')
transformers = pytest.importorskip('transformers', reason='parity')

NAMES = ('sky', 'food', 'sport')
TARGETS = ('attn/q', 'mlp/down')
LORA = lora.Spec(2, 3.0, TARGETS)
ROBERTA = references.WORDS | {'pad_token_id': 1}
WINDOWED = references.GROUPED | {'sliding_window': 4}


class Case(NamedTuple):
  """kind: of the class in transformers. source: the class whose file is the
  base. config: its words. options: what is chosen here."""

  kind: str
  source: str
  config: dict
  options: dict = {}


BERT, VIT = references.WORDS, references.PATCHES
DISTIL, TEXT = references.DISTIL, references.CLIP_PARTS['text_config']
CLIP = Case('CLIP', 'CLIPModel', references.CLIP_PARTS)
SIGLIP = Case('Siglip', 'SiglipModel', references.SIGLIP_PARTS)
CASES = {
  'vit': Case('ViT', 'ViTModel', VIT),
  'vit_mean': Case('ViT', 'ViTModel', VIT, {'pooling': 'mean'}),
  'deit': Case('DeiT', 'DeiTModel', VIT),
  'deit_mean': Case('DeiT', 'DeiTModel', VIT, {'pooling': 'mean'}),
  'dinov2': Case('Dinov2', 'Dinov2Model', references.DINO),
  'dinov2_cls': Case(
    'Dinov2', 'Dinov2Model', references.DINO, {'pooling': 'cls'}
  ),
  'dinov2_with_registers': Case(
    'Dinov2WithRegisters', 'Dinov2WithRegistersModel', references.DINO
  ),
  'bert': Case('Bert', 'BertModel', BERT),
  'bert_mean': Case('Bert', 'BertModel', BERT, {'pooling': 'mean'}),
  'bert_pooler': Case('Bert', 'BertModel', BERT, {'pooling': 'pooler'}),
  'bert_classifier_mean': Case(
    'Bert', 'BertForSequenceClassification', BERT, {'pooling': 'mean'}
  ),
  'bert_mlm': Case('Bert', 'BertForMaskedLM', BERT, {'head': 'masked_lm'}),
  'roberta': Case('Roberta', 'RobertaModel', ROBERTA),
  'roberta_pooler': Case(
    'Roberta',
    'RobertaForSequenceClassification',
    ROBERTA,
    {'pooling': 'pooler'},
  ),
  'roberta_mlm': Case(
    'Roberta', 'RobertaForMaskedLM', ROBERTA, {'head': 'masked_lm'}
  ),
  'xlm_roberta_mean': Case(
    'XLMRoberta', 'XLMRobertaModel', ROBERTA, {'pooling': 'mean'}
  ),
  'xlm_roberta_pooler': Case(
    'XLMRoberta',
    'XLMRobertaForSequenceClassification',
    ROBERTA,
    {'pooling': 'pooler'},
  ),
  'distilbert': Case('DistilBert', 'DistilBertModel', DISTIL),
  'distilbert_mean': Case(
    'DistilBert', 'DistilBertModel', DISTIL, {'pooling': 'mean'}
  ),
  'distilbert_pooler': Case(
    'DistilBert',
    'DistilBertForSequenceClassification',
    DISTIL,
    {'pooling': 'pooler'},
  ),
  'distilbert_mlm': Case(
    'DistilBert', 'DistilBertForMaskedLM', DISTIL, {'head': 'masked_lm'}
  ),
  'gpt2': Case('GPT2', 'GPT2Model', references.GPT2),
  'gpt2_lm': Case(
    'GPT2', 'GPT2LMHeadModel', references.GPT2, {'head': 'causal_lm'}
  ),
  'llama': Case('Llama', 'LlamaModel', references.GROUPED),
  'llama_lm': Case(
    'Llama', 'LlamaForCausalLM', references.GROUPED, {'head': 'causal_lm'}
  ),
  'mistral': Case('Mistral', 'MistralModel', WINDOWED),
  'mistral_lm': Case(
    'Mistral', 'MistralForCausalLM', WINDOWED, {'head': 'causal_lm'}
  ),
  'qwen2': Case('Qwen2', 'Qwen2Model', references.QWEN2),
  'qwen2_lm': Case(
    'Qwen2', 'Qwen2ForCausalLM', references.QWEN2, {'head': 'causal_lm'}
  ),
  'qwen3': Case('Qwen3', 'Qwen3Model', references.QWEN3),
  'qwen3_lm': Case(
    'Qwen3', 'Qwen3ForCausalLM', references.QWEN3, {'head': 'causal_lm'}
  ),
  'gemma2': Case('Gemma2', 'Gemma2Model', references.GEMMA2),
  'gemma2_lm': Case(
    'Gemma2', 'Gemma2ForCausalLM', references.GEMMA2, {'head': 'causal_lm'}
  ),
  'gemma3': Case('Gemma3Text', 'Gemma3TextModel', references.GEMMA3),
  'gemma3_lm': Case(
    'Gemma3Text', 'Gemma3ForCausalLM', references.GEMMA3, {'head': 'causal_lm'}
  ),
  'phi3': Case('Phi3', 'Phi3Model', references.PHI3),
  'phi3_lm': Case(
    'Phi3', 'Phi3ForCausalLM', references.PHI3, {'head': 'causal_lm'}
  ),
  'clip': CLIP,
  'siglip': SIGLIP,
  'siglip_mean': SIGLIP._replace(options={'pooling': 'mean'}),
  'siglip_text': SIGLIP._replace(options={'tower': 'text'}),
  'siglip_contrast': SIGLIP._replace(
    options={'head': 'contrast', 'tower': 'image'}
  ),
  'siglip_contrast_text': SIGLIP._replace(
    options={'head': 'contrast', 'tower': 'text'}
  ),
  'siglip_vision_model': Case('SiglipVision', 'SiglipVisionModel', VIT),
  'siglip_text_model': Case(
    'SiglipText', 'SiglipTextModel', references.SIGLIP_PARTS['text_config']
  ),
  'clip_vision_model': Case('CLIPVision', 'CLIPVisionModel', VIT),
  'clip_vision_projected': Case(
    'CLIPVision',
    'CLIPVisionModelWithProjection',
    VIT | {'projection_dim': 20},
    {'pooling': 'projected'},
  ),
  'clip_text_model': Case('CLIPText', 'CLIPTextModel', TEXT),
  'clip_text_projected': Case(
    'CLIPText',
    'CLIPTextModelWithProjection',
    TEXT | {'projection_dim': 20},
    {'pooling': 'projected'},
  ),
  'clip_text': CLIP._replace(options={'tower': 'text'}),
  'clip_contrast': CLIP._replace(
    options={'head': 'contrast', 'tower': 'image'}
  ),
}


class Made(NamedTuple):
  case: Case
  checkpoint: model_files.Checkpoint
  model: object
  parts: dict
  config: config_lib.Config


def made(name, folder) -> Made:
  """A base model, and what a run has trained of it."""
  case = CASES[name]
  words = case.config
  if 'ForSequence' in case.source:
    words = words | {'num_labels': 3}
  theirs = references.build(
    references.Case(case.kind, case.source, words, None)
  )
  checkpoint = references.reopen(theirs, folder / 'base')
  options = Options(classes=3, **case.options)
  model = pretrained.model(checkpoint.config, options)
  base, _ = model_files.load(model, checkpoint)
  fresh = LORA.init(jax.random.key(0), base['blocks'])
  rng = np.random.default_rng(0)
  head = model.backbone.init_head(jax.random.key(1))

  def moved(x):
    return np.asarray(x) + (0.2 * rng.normal(size=x.shape)).astype(np.float32)

  blocks, head = jax.tree.map(moved, (fresh, head))
  config = config_lib.from_values(
    {
      'model.name': str(folder / 'base'),
      'lora.rank': LORA.rank,
      'lora.alpha': LORA.alpha,
      **{f'model.{key}': value for key, value in case.options.items()},
    }
  )
  parts = {'base': base, 'blocks': blocks, 'head': head}
  return Made(case, checkpoint, model, parts, config)


def inputs(made: Made):
  """Ours, and the same for transformers."""
  case = made.case
  if case.kind.startswith('CLIP'):
    tokens = references.tokens()
    last = (tokens >= 0).sum(axis=1) - 1
    tokens[np.arange(3), last] = 59
    ours = {'image': references.images(3), 'text': tokens}
    theirs = references.torch_tokens(tokens, 59) | {
      'pixel_values': references.pixels(
        ours['image'], *map(list, _pixels('clip'))
      )
    }
    if case.kind == 'CLIPVision':
      return ours['image'], {'pixel_values': theirs['pixel_values']}
    if case.kind == 'CLIPText':
      return ours['text'], references.torch_tokens(tokens, 59)
    if made.model.backbone.width == 40:
      return ours, theirs
    return ours[made.config.model.tower], theirs
  if case.kind in ('ViT', 'DeiT'):
    ours = references.images()
    pixels = references.pixels(ours, *_pixels(case.kind.lower()))
    return ours, {'pixel_values': pixels}
  if case.kind.startswith('Siglip'):
    return _of_siglip(made)
  if case.kind.startswith('Dino'):
    ours = references.images()
    return ours, {'pixel_values': references.pixels(ours, *_pixels('deit'))}
  ours = references.tokens()
  return ours, references.torch_tokens(ours, 'Roberta' in case.kind)


def _of_siglip(made: Made):
  """As `inputs`; its texts are filled up."""
  ours = {'image': references.images(3), 'text': references.tokens()}
  filled = np.full((3, 12), 1)
  filled[:, :9] = np.where(ours['text'] < 0, 1, ours['text'])
  theirs = {
    'pixel_values': references.pixels(ours['image'], *_pixels('vit')),
    'input_ids': torch.from_numpy(filled),
  }
  tower = {'SiglipVision': 'image', 'SiglipText': 'text'}.get(made.case.kind)
  if tower or made.model.reference == 'SiglipForImageClassification':
    key = 'input_ids' if tower == 'text' else 'pixel_values'
    theirs = {key: theirs[key]}
  if made.config.model.head == 'contrast':
    return ours, theirs
  return ours[tower or made.config.model.tower], theirs


def _pixels(kind):
  from fedms_jax.models import clip, vit

  return (clip.MEAN, clip.STD) if kind == 'clip' else vit.PIXELS[kind]


def expected(made: Made, ours):
  """Our logits."""
  base = made.parts['base']
  merged = lora.merge(base['blocks'], made.parts['blocks'], LORA.scale)
  *_, logits = references.walk(
    made.model.backbone, base | {'blocks': merged}, made.parts['head'], ours
  )
  return logits


def found(made: Made, theirs, given, out):
  """What the loaded model says of the same inputs."""
  reference = made.model.reference
  with torch.no_grad():
    result = theirs(**given)
  if reference in ('CLIPModel', 'SiglipModel'):
    return result.logits_per_image
  if reference:
    return result.logits
  head = load_file(out / export.HEAD)
  with safe_open(out / export.HEAD, 'numpy') as f:
    assert json.loads(f.metadata()['labels']) == list(NAMES)
  inner = getattr(theirs, 'base_model', theirs)  # of PEFT
  inner = getattr(inner, 'model', inner)
  if made.case.kind in ('CLIP', 'Siglip'):
    image = made.config.model.tower == 'image'
    x = (result.vision_model_output if image else result.text_model_output)[1]
    if x.shape[-1] != made.model.backbone.width:  # before transformers 5
      x = (inner.visual_projection if image else inner.text_projection)(x)
  elif made.case.kind.startswith(('CLIP', 'Siglip')):
    embedding = 'text_embeds' if 'Text' in made.case.kind else 'image_embeds'
    x = getattr(result, embedding, None)
    x = result.pooler_output if x is None else x
  elif made.config.model.pooling == 'mean' and 'pixel_values' in given:
    # Our mean comes before the last norm.
    states = inner(**given, output_hidden_states=True).hidden_states[-1]
    first = states.shape[1] - 4
    x = inner.layernorm(states[:, first:].mean(1))
  elif made.config.model.pooling == 'mean':
    mask = given['attention_mask'][..., None].float()
    x = (result.last_hidden_state * mask).sum(1) / mask.sum(1)
  else:
    x = result.last_hidden_state[:, 0]
  x = x.detach().numpy()
  return torch.from_numpy(x @ head['weight'].T + head['bias'])


def compare(made: Made, theirs, out):
  ours, given = inputs(made)
  logits = expected(made, ours)
  result = found(made, theirs, given, out)
  mask = ours >= 0 if logits.ndim == 3 else None
  references.close(logits, result, mask)


def _class(run: Made) -> str:
  """The class that has our head, or that gives our feature."""
  auto = run.model.featured == 'AutoModel'
  feature = f'{run.case.kind}Model' if auto else run.model.featured
  return run.model.reference or feature


HARMLESS = (
  'text_model.',
  'logit_',
  'pooler.',
  'position_ids',
  'cls.',
  'lm_head.',
)


@pytest.mark.parametrize('name', CASES)
def test_a_merged_model_gives_our_logits_in_its_class(name, tmp_path):
  run = made(name, tmp_path)
  out = tmp_path / 'out'
  facts = foundation.Facts(NAMES, 9)
  export._merged(
    run.config, run.model, facts, run.checkpoint, None, run.parts, str(out)
  )
  kind = _class(run)
  theirs, info = getattr(transformers, kind).from_pretrained(
    out, output_loading_info=True
  )
  lost = [k for k in info['missing_keys'] if 'pooler.' not in k]
  extra = [
    k for k in info['unexpected_keys'] if not any(h in k for h in HARMLESS)
  ]
  assert not lost and not extra and not info['mismatched_keys']
  assert theirs.dtype == torch.float32
  labels = [theirs.config.id2label[i] for i in range(theirs.config.num_labels)]
  assert (tuple(labels) == NAMES) == ('Classification' in kind)
  compare(run, theirs.eval(), out)


@pytest.mark.parametrize('name', CASES)
def test_an_adapter_that_was_exported_comes_back(name, tmp_path):
  run = made(name, tmp_path)
  out = tmp_path / 'out'
  export._adapter(
    run.config, run.model, NAMES, run.checkpoint, run.parts, str(out)
  )
  blocks, head = peft.load(
    out,
    run.model,
    jax.tree.map(np.zeros_like, run.parts['blocks']),
    scale=LORA.scale,
    labels=NAMES,
    frozen=peft_names.frozen_beside(run.model, run.checkpoint),
  )
  wanted = run.parts['head'] if run.model.reference else {}
  found = blocks, head or {}
  assert jax.tree.structure(found) == jax.tree.structure(
    (run.parts['blocks'], wanted)
  )
  jax.tree.map(
    np.testing.assert_array_equal, found, (run.parts['blocks'], wanted)
  )


@pytest.mark.parametrize('name', CASES)
def test_an_adapter_gives_our_logits_in_peft(name, tmp_path):
  theirs = pytest.importorskip('peft', reason='parity needs peft')
  run = made(name, tmp_path)
  out = tmp_path / 'out'
  export._adapter(
    run.config, run.model, NAMES, run.checkpoint, run.parts, str(out)
  )
  kind = _class(run)
  labeled = {'num_labels': 3} if 'Classification' in kind else {}
  base = getattr(transformers, kind).from_pretrained(
    tmp_path / 'base', **labeled
  )
  adapted = theirs.PeftModel.from_pretrained(base, out).eval()
  compare(run, adapted, out)
  assert peft.CONFIG in {file.name for file in out.iterdir()}
