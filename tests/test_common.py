"""transformers' own tests, run on nano4M."""

import unittest

import torch
from test_modeling_nano4m import MODALITIES, make_batch
from transformers_suite import suite_module

from modeling_nano4m import Nano4MConfig, Nano4MModel

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
