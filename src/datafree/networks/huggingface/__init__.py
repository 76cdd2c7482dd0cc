"""Model directories as Hugging Face's libraries write them (`hf/DIR`): transformers' and timm's."""
