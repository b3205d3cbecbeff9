"""p2pllm: run and fine-tune large language models over the Internet, on machines that nobody manages."""
