"""What every long job needs: finished parts on disk, counted work, progress, safe paths."""
