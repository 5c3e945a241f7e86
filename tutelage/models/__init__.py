"""Find, load and quantise a language model, and turn text into its tokens; the only room that knows transformers."""
