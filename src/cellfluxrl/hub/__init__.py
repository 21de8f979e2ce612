"""Loading from and publishing on the Hugging Face Hub, whatever is published."""
