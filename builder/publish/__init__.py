"""A verified release on the Hugging Face Hub, as an immutable version."""
