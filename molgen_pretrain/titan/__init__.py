"""TorchTitan's Qwen3 checkpoints, read and written without TorchTitan and without executing what they hold.

A TorchTitan checkpoint is a folder in PyTorch's distributed checkpoint format (DCP): `.metadata`, which says what lies
where, and `*.distcp` files. `checkpoint.TitanCheckpoint` shows one under Hugging Face names, `export` goes the other
way; both hand tensors around as `LazyTensor`, so that memory holds what is being copied and not the model.
"""

from __future__ import annotations
