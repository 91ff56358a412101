"""How many parameters a Qwen3 has, and where. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from molgen_pretrain.model.flops import ModelSizes, block_matmul_weights


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Trained parameters. The matrices of all blocks are what Muon is for; `root` is what no block has."""

    blocks: int
    block_matrices: int  # of one block
    block_norms: int  # of one block
    embedding: int
    head: int  # 0 where it is the embedding
    final_norm: int

    @property
    def block(self) -> int:
        return self.block_matrices + self.block_norms

    @property
    def root(self) -> int:
        """Embedding, final norm and head: what FSDP2 gathers outside of the blocks."""
        return self.embedding + self.head + self.final_norm

    @property
    def total(self) -> int:
        return self.blocks * self.block + self.root

    @property
    def hidden_matrices(self) -> int:
        """All matrices between hidden states."""
        return self.blocks * self.block_matrices

    def of_tensor_rank(self, tensor: int) -> Parameters:
        """Those of one of `tensor` tensor-parallel ranks: matrices are cut, norms are not."""
        return Parameters(
            blocks=self.blocks,
            block_matrices=-(-self.block_matrices // tensor),
            block_norms=self.block_norms,
            embedding=-(-self.embedding // tensor),
            head=-(-self.head // tensor),
            final_norm=self.final_norm,
        )


def count(sizes: ModelSizes) -> Parameters:
    """The parameters of transformers' Qwen3ForCausalLM: no biases, norms of hidden states and of the heads of q, k."""
    table = sizes.vocab_size * sizes.hidden_size
    return Parameters(
        blocks=sizes.num_hidden_layers,
        block_matrices=block_matmul_weights(sizes),
        block_norms=2 * sizes.hidden_size + 2 * sizes.head_dim,
        embedding=table,
        head=0 if sizes.tie_word_embeddings else table,
        final_norm=sizes.hidden_size,
    )
