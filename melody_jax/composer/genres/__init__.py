"""The genres of the composer, by name."""

from melody_jax.composer.genres import acoustic, art, band, club, electronic, jazz
from melody_jax.composer.genres.schema import FORMS, BassPart, Genre, LayerPart

GENRES: dict[str, Genre] = {
    genre.name: genre for family in (acoustic, art, jazz, band, club, electronic) for genre in family.GENRES
}

__all__ = ["FORMS", "GENRES", "BassPart", "Genre", "LayerPart"]
