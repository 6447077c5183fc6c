"""``python -m mlx_glu``."""

from .cli import main

if __name__ == "__main__":
    main()
