"""The genres the composer writes, by name."""

from melody_jax.data.composer.genres import acoustic, art, band, electronic
from melody_jax.data.composer.genres.schema import FORMS, BassPart, Genre, Layer

GENRES: dict[str, Genre] = {
    genre.name: genre for family in (acoustic, art, band, electronic) for genre in family.GENRES
}

__all__ = ["FORMS", "GENRES", "BassPart", "Genre", "Layer"]
