"""transformers' own tests, run on nano4M and on the tokenizers that are trained networks."""

import copy
import unittest

import torch
from test_modeling_nano4m import MODALITIES, make_batch
from test_tokenizers import (
    audio_tokenizer,
    codec_tokenizer,
    example,
    image_tokenizer,
    image_vit,
    image_vqgan,
    istft_tokenizer,
    text_vq_tokenizer,
)
from transformers import PreTrainedConfig, PreTrainedModel
from transformers_suite import suite_module

from modeling_nano4m import Nano4MConfig, Nano4MModel
from tokenizers_4m import (
    AudioCodecTokenizer,
    AudioTokenizer,
    ImageTokenizer,
    ImageViT,
    ImageVQGAN,
    TextVQTokenizer,
)

common = suite_module("test_modeling_common")
configuration = suite_module("test_configuration_common")


class CommonTests(common.ModelTesterMixin):
    """What a model adds: `all_model_classes`, a `model_tester` and a property of its config to check.

    These attributes switch tests off, for all models unless one is named:

    - `all_generative_model_classes`: those of `GenerationMixin.generate`, which takes one sequence of text; nano4M's
      `generate` fills token grids, and has tests of its own.
    - `test_resize_embeddings`: resizing the one vocabulary, which no model has; for nano4M's several there is
      `resize_vocabulary`, with a test of its own.
    - `has_attentions`, of the tokenizers: the weights of attention and the choice of its implementation. Most are
      convolutions; the others call torch's fused kernel, which returns no weights.

    What is switched off by `unittest.skip` has its reason there. Tests of gradient checkpointing pass without doing
    anything for models that do not support it.

    Not here: the processor's mixin, for nano4M has no processor (its pipeline calls the tokenizers), and
    `TextTokenizer`, which has nothing to train: its tests are in `test_text_tokenizers.py`.
    """

    all_generative_model_classes = ()
    test_can_init_all_missing_weights_before_2023 = True  # the year is looked for in a line that our files do not have
    test_resize_embeddings = False
    config_property: str

    def setUp(self):
        (model_class,) = self.all_model_classes
        self.config_tester = configuration.ConfigTester(
            self,
            config_class=model_class.config_class,
            has_text_modality=False,
            common_properties=[self.config_property],
        )

    def test_config(self):
        self.config_tester.run_common_tests()


class Nano4MTester:
    """Makes the small configuration and the inputs that the common tests use."""

    batch_size, seq_length = 8, 6
    hidden_size, num_attention_heads = 32, 4
    num_hidden_layers = 2
    is_training = True

    def get_config(self) -> Nano4MConfig:
        return Nano4MConfig(
            modalities=MODALITIES,
            hidden_size=self.hidden_size,
            intermediate_size=64,
            num_encoder_layers=self.num_hidden_layers,
            num_decoder_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[Nano4MConfig, dict[str, torch.Tensor]]:
        return self.get_config(), make_batch(self.batch_size, self.seq_length, self.seq_length)


class Nano4MModelTest(CommonTests, unittest.TestCase):
    all_model_classes = (Nano4MModel,)
    model_tester = Nano4MTester()
    config_property = "hidden_size"
    additional_model_inputs = sorted(make_batch().keys() - {"input_ids", "target_ids"})


class AutoencoderTester:
    """Makes the configuration and the inputs of a tokenizer from those of its own tests."""

    batch_size, is_training = 3, True

    def __init__(self, tokenizer: PreTrainedModel):
        self.tokenizer = tokenizer

    def get_config(self) -> PreTrainedConfig:
        return copy.deepcopy(self.tokenizer.config)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        return self.get_config(), {self.tokenizer.main_input_name: example(self.tokenizer)}


class AutoencoderTests(CommonTests):
    """What holds for all: they have no attention to return, and media go in, not ids."""

    config_property = "codebook_size"
    has_attentions = False

    def test_model_outputs_equivalence(self):
        """As transformers' own, without the hidden states that it asks for too."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        (model_class,) = self.all_model_classes
        model = model_class(config).eval()
        as_tuple, output = model(**inputs, return_dict=False), model(**inputs)
        self.assertIsInstance(as_tuple, tuple)
        torch.testing.assert_close(as_tuple, output.to_tuple())

    @unittest.skip("no list of hidden states, as most are convolutions at many resolutions")
    def test_hidden_states_output(self):
        pass

    @unittest.skip("no list of hidden states, as most are convolutions at many resolutions")
    def test_retain_grad_hidden_states_attentions(self):
        pass

    @unittest.skip("media go in, not ids: no table of embeddings")
    def test_model_get_set_embeddings(self):
        pass

    @unittest.skip("codebooks start random, so that two initialisations differ")
    def test_init_weights_can_init_buffers(self):
        pass


class ImageTokenizerTest(AutoencoderTests, unittest.TestCase):
    all_model_classes = (ImageTokenizer,)
    model_tester = AutoencoderTester(image_tokenizer())


class ImageVQGANTest(AutoencoderTests, unittest.TestCase):
    all_model_classes = (ImageVQGAN,)
    model_tester = AutoencoderTester(image_vqgan())


class ImageViTTest(AutoencoderTests, unittest.TestCase):
    all_model_classes = (ImageViT,)
    model_tester = AutoencoderTester(image_vit())


class AudioTokenizerTest(AutoencoderTests, unittest.TestCase):
    all_model_classes = (AudioTokenizer,)
    model_tester = AutoencoderTester(audio_tokenizer())


class ISTFTAudioTokenizerTest(AutoencoderTests, unittest.TestCase):
    all_model_classes = (AudioTokenizer,)
    model_tester = AutoencoderTester(istft_tokenizer())


class AudioCodecTokenizerTest(AutoencoderTests, unittest.TestCase):
    all_model_classes = (AudioCodecTokenizer,)
    model_tester = AutoencoderTester(codec_tokenizer())
    config_property = "num_quantizers"


SUBWORDS = text_vq_tokenizer().fast_tokenizer


class TextVQTokenizerWithVocabulary(TextVQTokenizer):
    """The common tests make models of a configuration alone."""

    def __init__(self, config, tokenizer=None):
        super().__init__(config, tokenizer or SUBWORDS)


class TextVQTokenizerTest(AutoencoderTests, unittest.TestCase):
    all_model_classes = (TextVQTokenizerWithVocabulary,)
    model_tester = AutoencoderTester(text_vq_tokenizer())

    @unittest.skip("it loads from no folder, but the vocabulary lies in one")
    def test_from_pretrained_no_checkpoint(self):
        pass
