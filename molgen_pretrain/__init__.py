"""Pretrain Qwen3 language models on 3D molecules written as text."""

__version__ = "0.1.0"
