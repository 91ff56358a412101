"""What a run will need, on paper: parameters, memory of a rank, traffic between ranks, time.

Pure arithmetic on plain dataclasses, which `tools/plan` fills from a config and prints; docs/planning.md has the
formulae. Import from the submodules; none loads torch.
"""
