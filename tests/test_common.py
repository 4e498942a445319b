"""transformers' own tests, run on nano4M and on the tokenizers that are trained networks."""

import unittest

import torch
from test_modeling_nano4m import MODALITIES, make_batch
from transformers_suite import suite_module

from modeling_nano4m import Nano4MConfig, Nano4MModel
from tokenizers_4m import AudioTokenizer, AudioTokenizerConfig, ImageTokenizer, ImageTokenizerConfig

common = suite_module("test_modeling_common")
configuration = suite_module("test_configuration_common")


class Nano4MTester:
    """Makes the small configuration and the inputs that the common tests use."""

    batch_size, seq_length = 8, 6
    hidden_size, num_attention_heads = 32, 4
    num_hidden_layers = 2
    is_training = True

    def __init__(self, parent):
        self.parent = parent

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


class Nano4MModelTest(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (Nano4MModel,)
    all_generative_model_classes = ()  # `generate` fills token grids and is no `GenerationMixin`'s
    additional_model_inputs = sorted(make_batch().keys() - {"input_ids", "target_ids"})
    test_resize_embeddings = False  # one table holds all vocabularies; see `resize_vocabulary`

    def setUp(self):
        self.model_tester = Nano4MTester(self)
        self.config_tester = configuration.ConfigTester(
            self, config_class=Nano4MConfig, has_text_modality=False, common_properties=["hidden_size"]
        )

    def test_config(self):
        self.config_tester.run_common_tests()


class ImageTokenizerTester:
    batch_size, is_training = 3, True

    def get_config(self) -> ImageTokenizerConfig:
        return ImageTokenizerConfig(image_size=16, num_frames=2, block_out_channels=[8, 16, 16], codebook_size=32)

    def prepare_config_and_inputs_for_common(self) -> tuple[ImageTokenizerConfig, dict[str, torch.Tensor]]:
        return self.get_config(), {"pixel_values": torch.randn(3, 2, 3, 16, 16)}


class AudioTokenizerTester:
    batch_size, is_training = 3, True

    def get_config(self) -> AudioTokenizerConfig:
        return AudioTokenizerConfig(clip_seconds=0.5, num_mels=32, hidden_size=16, codebook_size=16)

    def prepare_config_and_inputs_for_common(self) -> tuple[AudioTokenizerConfig, dict[str, torch.Tensor]]:
        return self.get_config(), {"waveform": 0.1 * torch.randn(3, 8000)}


class AutoencoderTests(common.ModelTesterMixin):
    """What holds for both: they have no attention to return, and no vocabulary of words to resize."""

    all_generative_model_classes = ()
    has_attentions = False
    test_resize_embeddings = False

    def setUp(self):
        (model_class,) = self.all_model_classes
        self.config_tester = configuration.ConfigTester(
            self, config_class=model_class.config_class, has_text_modality=False, common_properties=["codebook_size"]
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model_outputs_equivalence(self):
        """As transformers' own, without the hidden states that it asks for too."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        (model_class,) = self.all_model_classes
        model = model_class(config).eval()
        as_tuple, output = model(**inputs, return_dict=False), model(**inputs)
        self.assertIsInstance(as_tuple, tuple)
        torch.testing.assert_close(as_tuple, output.to_tuple())

    @unittest.skip("convolutions at many resolutions: no list of hidden states")
    def test_hidden_states_output(self):
        pass

    @unittest.skip("convolutions at many resolutions: no list of hidden states")
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
    model_tester = ImageTokenizerTester()


class AudioTokenizerTest(AutoencoderTests, unittest.TestCase):
    all_model_classes = (AudioTokenizer,)
    model_tester = AudioTokenizerTester()
