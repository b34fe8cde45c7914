"""Selections inside other libraries' pipelines, each opened by name: hf, ray_data, datatrove, curator."""
