"""OpenAI's completions and chat API in front of the virtual GPU."""
