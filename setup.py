from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="nano4m",
    version="0.1.0",
    description="A light 4M: any-to-any masked modelling of image, audio and text taken from video",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["modeling_nano4m*", "tokenizers_4m*", "dataset_scripts*", "trainers*"]),
    # The metrics are loaded from their files, each from a folder of its own.
    package_data={"trainers": ["model_card.md.j2", "metrics/*/*.py"], "trainers.evaluation": ["page.html.j2"]},
    install_requires=[
        # torchaudio stopped at 2.11 and loads only beside the torch it was built with.
        "torch>=2.11,<2.12",
        "torchaudio>=2.11,<2.12",
        "torchvision>=0.26,<0.27",
        "transformers>=5.23,<6",
        "datasets>=5.2,<6",
        "tokenizers>=0.22",
        "diffusers>=0.42,<1",
        "accelerate>=1.15,<2",
        "evaluate>=0.4.6",
        "torchmetrics>=1.9",
        "safetensors>=0.6",
        "huggingface-hub>=2.0,<3",
        "soundfile>=0.13",
        "av>=15",
        "numpy>=1.26",
        "pillow>=10",
        "pyyaml>=6",
        "matplotlib>=3.8",
        "tensorboard>=2.16",
        "jinja2>=3.1",
        "jiwer>=4",
        "tqdm>=4.66",
    ],
    extras_require={
        "judges": ["pocketsphinx>=5.0"],
        "test": [
            "ipykernel>=6",
            "nbclient>=0.10",
            "nbformat>=5",
            "parameterized>=0.9",
            "pocketsphinx>=5.0",
            "pytest>=8",
            "ruff>=0.9",
            "vector-quantize-pytorch>=1.20",
        ],
    },
)
