"""The studio: music in the browser. Takes in a project folder, a queue of jobs, uploads, votes, and pictures."""
