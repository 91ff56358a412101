"""What a GPU and the machines around it offer."""

from __future__ import annotations

from dataclasses import dataclass

from molgen_pretrain.metrics.throughput import peak_flops


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU among others; bandwidths are per GPU and direction.

    `device`: its name as torch gives it, which decides the peak. `memory_gib`: what torch reports, somewhat less than
    on the box. `link_gbs`: to the others of its node, `network_gbs`: its share of the node's way out.
    """

    name: str
    device: str
    memory_gib: float
    link_gbs: float
    network_gbs: float
    per_node: int = 8

    def peak(self, dtype: str) -> float | None:
        """FLOP/s, see `metrics.throughput.peak_flops`."""
        return peak_flops(self.device, dtype)


# Links by the vendors' data sheets (half of the figure for both directions); network as the vendors' own eight-GPU
# systems have it: one port of 200 Gb/s (A100), 400 (H100, H200, B200, MI300X) or 800 (B300) per GPU. The L40S and the
# RTX 4090 talk over PCIe 4.0 x16.
_KNOWN = (
    Gpu(name="a100-40gb", device="NVIDIA A100-SXM4-40GB", memory_gib=39.4, link_gbs=300, network_gbs=25),
    Gpu(name="a100", device="NVIDIA A100-SXM4-80GB", memory_gib=79.1, link_gbs=300, network_gbs=25),
    Gpu(name="h100", device="NVIDIA H100 80GB HBM3", memory_gib=79.1, link_gbs=450, network_gbs=50),
    Gpu(name="h200", device="NVIDIA H200", memory_gib=139.8, link_gbs=450, network_gbs=50),
    Gpu(name="b200", device="NVIDIA B200", memory_gib=178.0, link_gbs=900, network_gbs=50),
    Gpu(name="b300", device="NVIDIA B300 SXM6 AC", memory_gib=267.0, link_gbs=900, network_gbs=100),
    Gpu(name="l40s", device="NVIDIA L40S", memory_gib=44.4, link_gbs=32, network_gbs=25),
    Gpu(name="rtx4090", device="NVIDIA GeForce RTX 4090", memory_gib=23.5, link_gbs=32, network_gbs=12.5),
    Gpu(name="mi300x", device="AMD Instinct MI300X", memory_gib=191.5, link_gbs=448, network_gbs=50),
)

GPUS = {gpu.name: gpu for gpu in _KNOWN}
