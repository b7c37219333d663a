"""The simulator's OpenAI API: endpoints, request bodies, streams, errors, vocabulary."""
