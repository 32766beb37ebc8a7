"""What is known of vLLM: its arguments per version, its command lines, its failure texts. Pure."""
