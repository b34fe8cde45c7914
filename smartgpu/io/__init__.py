"""Pools in (json, jsonl, csv, parquet, HF folders, npy, npz, safetensors), chosen rows out."""

from smartgpu.io.read import Pool, map_embeddings, read_embeddings, read_pool
from smartgpu.io.text import find_text, row_texts, text_fields
from smartgpu.io.write import FORMATS, output_path, write_rows

__all__ = [
    "FORMATS",
    "Pool",
    "find_text",
    "map_embeddings",
    "output_path",
    "read_embeddings",
    "read_pool",
    "row_texts",
    "text_fields",
    "write_rows",
]
