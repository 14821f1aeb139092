"""kldistill teaches a pre-trained LLM new domain words by distilling it into itself across two tokenizations."""

__version__ = "0.1.0"
