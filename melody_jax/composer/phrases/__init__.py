"""The words of the captions, as data: genres, moods, instruments, and the sentence frames that join them."""
