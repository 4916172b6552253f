"""Depth beside a serving engine: ``serving.vllm`` for vLLM, imported by who uses it alone."""
