"""Qwen3: build, deterministic initial weights, the training loss, FLOPs, Hugging Face export.

Import from the submodules. Those that describe (flops, parameters, loss_kernels, hf_config) load no torch.
"""
