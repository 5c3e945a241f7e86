"""Find, load and quantise a language model, and turn text into its tokens; the only room that knows transformers."""

from tutelage.models.noise import silence_known_lines
from tutelage.models.shape_caches import bound_shape_caches

silence_known_lines()
bound_shape_caches()
