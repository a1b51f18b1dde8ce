"""Weights that come with crysxpp_mm, one folder a model; see ``crysxpp_mm.list_models``."""
