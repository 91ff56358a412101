"""Qwen3: build, deterministic initial weights, the training loss, FLOPs, Hugging Face export.

Import from the submodules; they load torch and transformers.
"""
